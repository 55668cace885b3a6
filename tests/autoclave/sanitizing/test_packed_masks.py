"""Files of masks and norms: what is read is what was written, and it can be checked against the adapter."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from safetensors.torch import load_file, save_file

from autoclave.errors import InputError
from autoclave.modelling.adapters import load_adapter, save_adapter
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.activations import ActivationNorm
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.packed_masks import load_masks, load_norms, save_masks, save_norms
from tests.autoclave.sanitizing.test_activations import adapted
from tests.autoclave.training.test_loss import random_examples

MASK = nps.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 19)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@given(masks=st.dictionaries(st.text(min_size=1, max_size=5).filter(lambda n: n.isalnum()), MASK, max_size=4))
@settings(max_examples=60, deadline=None)
def test_masks_come_back(folder: Path, masks: dict[str, np.ndarray]) -> None:
    save_masks({name: torch.from_numpy(mask) for name, mask in masks.items()}, folder / "masks")
    loaded = load_masks(folder / "masks")
    assert list(loaded) == list(masks), "in the same order"
    assert all(mask.dtype == torch.bool for mask in loaded.values())
    assert all(np.array_equal(loaded[name].numpy(), mask) for name, mask in masks.items())


def test_a_mask_takes_a_bit_per_entry_and_the_same_masks_the_same_bytes(tmp_path: Path) -> None:
    mask = torch.zeros((3, 5), dtype=torch.bool)
    mask[0, 1] = mask[1, 3] = mask[2, 4] = True  # entries 1, 8 and 14
    for name in ("one", "two"):
        save_masks({"q": mask, "a": mask}, tmp_path / name)
    assert load_file(tmp_path / "one")["q"].tolist() == [0b10, 0b1000001]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_stored_mask_follows_from_the_stored_norms_and_the_stored_adapter(
    base_dir: Path, tmp_path: Path
) -> None:
    base = load_base(base_dir)
    model = adapted(base.model, "all-linear", 4)
    save_adapter(model, tmp_path, base_name="tiny", base_revision=None, base_sha256=base.sha256)
    antidote = Antidote.from_pass(model, random_examples(5), device="cpu")
    save_norms(antidote.norms, tmp_path / "norms.safetensors")
    save_masks(antidote.masks(0.1), tmp_path / "masks.safetensors")

    again = Antidote(load_adapter(load_base(base_dir), tmp_path), load_norms(tmp_path / "norms.safetensors"))
    stored = load_masks(tmp_path / "masks.safetensors")
    recomputed = again.masks(0.1)
    assert list(stored) == list(recomputed)
    assert all(torch.equal(stored[name], recomputed[name]) for name in stored)
    norm, before = next(iter(again.norms.values())), next(iter(antidote.norms.values()))
    assert (
        (norm.num_samples, norm.num_tokens) == (before.num_samples, before.num_tokens) == (5, norm.num_tokens)
    )


def write_masks(file: Path, tensors: dict[str, torch.Tensor], metadata: Any) -> None:
    save_file(tensors, file, metadata={"autoclave.masks": metadata})


BITS = torch.zeros(2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "metadata", "why"),
    [
        ({"q": BITS}, "{", "is not JSON"),
        ({"q": BITS}, "[]", "does not list its tensors"),
        ({"q": BITS}, json.dumps({"k": [3, 5]}), "does not list its tensors"),
        ({"q": BITS}, json.dumps({"q": [3, -5]}), r"q has the shape \[3, -5\]"),
        ({"q": BITS}, json.dumps({"q": 15}), "q has the shape 15"),
        ({"q": BITS}, json.dumps({"q": [3, 6]}), r"not bits of \[3, 6\]"),
        ({"q": BITS.float()}, json.dumps({"q": [3, 5]}), r"float32 \(2,\), not bits"),
        ({"q": BITS + 128}, json.dumps({"q": [3, 5]}), "bits beyond its last entry"),
    ],
)
def test_broken_masks(tmp_path: Path, tensors: Any, metadata: str, why: str) -> None:
    write_masks(tmp_path / "masks", tensors, metadata)
    with pytest.raises(InputError, match=why):
        load_masks(tmp_path / "masks")


@pytest.mark.parametrize(
    ("tensor", "counts", "why"),
    [
        (torch.ones(3), [5], r"q counts \[5\]"),
        (torch.ones(3), [5, 0], r"q counts \[5, 0\]"),
        (torch.ones(3).double(), [5, 9], "no vector of float32 norms"),
        (torch.ones(3, 1), [5, 9], "no vector of float32 norms"),
        (torch.tensor([1.0, float("nan")]), [5, 9], "no vector of float32 norms"),
    ],
)
def test_broken_norms(tmp_path: Path, tensor: torch.Tensor, counts: Any, why: str) -> None:
    save_file({"q": tensor}, tmp_path / "norms", metadata={"autoclave.norms": json.dumps({"q": counts})})
    with pytest.raises(InputError, match=why):
        load_norms(tmp_path / "norms")


def test_files_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    save_norms({"q": ActivationNorm(torch.ones(3), 5, 9)}, tmp_path / "norms")
    for file in ("missing", "text", "norms"):
        with pytest.raises(InputError, match="is not a file of masks"):
            load_masks(tmp_path / file)
    whole = (tmp_path / "norms").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-3])
    with pytest.raises(InputError, match="is not a file of activation norms"):
        load_norms(tmp_path / "cut")
