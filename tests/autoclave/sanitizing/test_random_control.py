"""The random control prunes as much as Antidote, elsewhere, and gives the adapter back."""

from pathlib import Path

import torch

from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.sanitizing.masks import pruned_per_row
from autoclave.sanitizing.random_control import randomly_pruned
from autoclave.spec import LoraSpec


def test_as_many_zeros_in_every_row_and_whole_again(base_dir: Path) -> None:
    model = attach(load_base(base_dir).model, LoraSpec(r=8), seed=1)
    for tensor in adapter_state(model).values():
        tensor.fill_(1.0)
    masks = []
    for seed in (1, 1, 2):
        with randomly_pruned(model, 0.2, seed=seed):
            masks.append({name: tensor == 0 for name, tensor in adapter_state(model).items()})
        assert all((tensor == 1).all() for tensor in adapter_state(model).values())
    for name, mask in masks[0].items():
        assert (mask.sum(dim=1) == pruned_per_row(mask.shape[1], 0.2)).all(), name
        assert torch.equal(mask, masks[1][name]), "the seed decides"
    assert any(not torch.equal(mask, masks[2][name]) for name, mask in masks[0].items())
