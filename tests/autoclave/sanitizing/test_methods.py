"""From a spec to its sanitiser; every one of them gives the adapter back bit for bit."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state
from autoclave.sanitizing.method_table import ABOUT, STRENGTH_OF_METHOD
from autoclave.sanitizing.methods import build_sanitizer, sampled
from autoclave.sanitizing.strengths import ladders
from autoclave.spec import SanitizerName, SanitizeSpec
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted

METHODS = get_args(SanitizerName)


@pytest.mark.parametrize("method", METHODS)
def test_restore_is_bit_exact(base_dir: Path, method: Any) -> None:
    model = adapted(base_dir, ("q_proj", "down_proj"))
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}

    def is_whole() -> bool:
        return all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(model).items())

    spec = SanitizeSpec(method=method)
    sanitizer = build_sanitizer(model, spec, harmful=HARMFUL, user=USER, device="cpu")
    assert sanitizer.method == method
    assert is_whole(), "building changed the adapter"
    weakest, *_, strongest = (strength for ladder in ladders(spec) for strength in ladder)
    changes = sanitizer.apply(weakest)
    alone = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    assert not is_whole()
    with sanitizer.applied(strongest):
        assert not is_whole()
    assert is_whole()
    with pytest.raises(KeyError), sanitizer.applied(strongest):
        raise KeyError
    assert is_whole()
    # Always from the original, whatever was applied before.
    sanitizer.apply(strongest)
    assert sanitizer.apply(weakest) == changes
    assert all(torch.equal(tensor, alone[name]) for name, tensor in adapter_state(model).items())
    sanitizer.restore()
    assert is_whole()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("user", [None, []])
def test_user_data_is_asked_for_where_it_is_needed(base_dir: Path, method: Any, user: Any) -> None:
    model, spec = adapted(base_dir, ("q_proj",)), SanitizeSpec(method=method)
    if not spec.uses_user_data:
        assert build_sanitizer(model, spec, harmful=HARMFUL, user=user, device="cpu").method == method
        return
    with pytest.raises(InputError, match="--user-data"):
        build_sanitizer(model, spec, harmful=HARMFUL, user=user, device="cpu")


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_realignment_set_is_refused(base_dir: Path, method: Any) -> None:
    with pytest.raises(InputError, match="realignment set is empty"):
        build_sanitizer(
            adapted(base_dir, ("q_proj",)), SanitizeSpec(method=method), harmful=[], user=USER, device="cpu"
        ).apply(ladders(SanitizeSpec(method=method))[0][0])


def test_the_table_knows_every_method_and_its_strengths() -> None:
    assert set(ABOUT) == set(STRENGTH_OF_METHOD) == set(METHODS)
    for method, fields in STRENGTH_OF_METHOD.items():
        for ladder in ladders(SanitizeSpec(method=method)):
            for strength in ladder:
                given = [name for name in ("alpha", "mu") if getattr(strength, name) is not None]
                assert tuple(given) == fields


def test_a_sample_is_fixed_and_in_order() -> None:
    assert sampled(USER, len(USER)) is USER
    chosen = sampled(USER, 8)
    assert len(chosen) == 8
    places = [next(i for i, example in enumerate(USER) if example is one) for one in chosen]
    assert places == sorted(set(places))
    assert places != list(range(8))
    assert [id(example) for example in sampled(USER, 8)] == [id(example) for example in chosen]
