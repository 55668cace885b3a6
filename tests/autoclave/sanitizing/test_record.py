"""The record says what the tensors say, and the files say why."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.modelling.adapters import adapter_state
from autoclave.sanitizing.masks import RULES
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.packed_masks import load_masks, load_norms
from autoclave.sanitizing.record import sanitization_record, scoring_norms, write_masks
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted

STRENGTHS = {
    "antidote": Strength(alpha=0.1),
    "antidote-protected": Strength(alpha=0.1),
    "projection": Strength(mu=2.0),
    "pipeline": Strength(alpha=0.01, mu=2.0),
}


def sanitizer_of(model: Any, spec: SanitizeSpec) -> Any:
    return build_sanitizer(model, spec, harmful=HARMFUL, user=USER, device="cpu")


@pytest.mark.parametrize("method", STRENGTHS)
def test_the_record_is_what_the_tensors_say(base_dir: Path, method: Any) -> None:
    model = adapted(base_dir)
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    spec, strength = SanitizeSpec(method=method, mus=(2.0,), max_user_examples=9), STRENGTHS[method]
    sanitizer = sanitizer_of(model, spec)
    record = sanitization_record(spec, strength, sanitizer.apply(strength), harmful=HARMFUL, user=USER)
    after = adapter_state(model)

    def zeros(part: str) -> tuple[int, int]:
        chosen = [tensor for name, tensor in after.items() if part in name]
        return sum(int((t == 0).sum()) for t in chosen), sum(t.numel() for t in chosen)

    assert (record["pruned"], record["entries"]) == zeros("")
    assert record["pruned_fraction"] == record["pruned"] / record["entries"]
    assert record["layers"] == {
        str(layer): zeros(f".layers.{layer}.")[0] / zeros(f".layers.{layer}.")[1] for layer in (0, 1)
    }
    for name, matrix in record["matrices"].items():
        pruned, entries = zeros(name)
        assert (matrix["pruned"], matrix["rows"] * matrix["cols"]) == (pruned, entries)
        assert matrix["sparsity"] == pruned / entries
    difference = math.hypot(*((after[name] - before[name]).norm().item() for name in before))
    size = math.hypot(*(tensor.norm().item() for tensor in before.values()))
    assert record["relative_change"] == pytest.approx(difference / size, rel=1e-5)
    assert record["realign_examples"] == len(HARMFUL)
    assert record["realign_tokens"] == sum(map(len, HARMFUL))
    assert record["user_examples"] == (None if method == "antidote" else 9)
    assert (record["alpha"], record["mu"]) == (strength.alpha, strength.mu)
    assert record["ridge"] == (None if strength.mu is None else 0.01)
    rule = record["rule_name"]
    assert rule == {"projection": None, "pipeline": "matrix"}.get(method, "row")
    assert record["rule"] == (None if rule is None else RULES[rule])
    assert record["norm"] == (None if rule is None else "rms")
    assert record["protection"] == ("normalised-difference" if method == "antidote-protected" else None)
    assert record["versions"].keys() == {"autoclave", "torch", "transformers", "peft"}


@pytest.mark.parametrize("method", STRENGTHS)
def test_files_hold_what_was_pruned_and_its_norms(base_dir: Path, tmp_path: Path, method: Any) -> None:
    model, strength = adapted(base_dir), STRENGTHS[method]
    sanitizer = sanitizer_of(model, SanitizeSpec(method=method, mus=(2.0,)))
    with sanitizer.applied(strength):
        zeros = {name: layer.weight == 0 for name, layer in sanitizer.layers.items()}
    write_masks(sanitizer, strength, tmp_path)  # also after it was taken back
    if method == "projection":
        assert list(tmp_path.iterdir()) == []
        assert scoring_norms(sanitizer, strength) == {}
        return
    masks = load_masks(tmp_path / "masks.safetensors")
    assert masks.keys() == zeros.keys()
    assert all(torch.equal(mask, zeros[name]) for name, mask in masks.items())
    norms = load_norms(tmp_path / "input_norms.safetensors")
    expected = scoring_norms(sanitizer, strength)
    assert norms.keys() == expected.keys() == masks.keys()
    for name, norm in norms.items():
        assert torch.equal(norm.norm, expected[name].norm)
        assert (norm.num_samples, norm.num_tokens) == (len(HARMFUL), sum(map(len, HARMFUL)))


def test_masks_of_another_strength_are_never_written(base_dir: Path, tmp_path: Path) -> None:
    sanitizer = sanitizer_of(adapted(base_dir, ("q_proj",)), SanitizeSpec(method="antidote"))
    for applied in (None, Strength(alpha=0.2)):
        if applied:
            sanitizer.apply(applied)
        with pytest.raises(AssertionError):
            write_masks(sanitizer, Strength(alpha=0.1), tmp_path)
    assert list(tmp_path.iterdir()) == []
