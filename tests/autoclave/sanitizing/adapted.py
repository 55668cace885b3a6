"""Random adapters and examples on a tiny base, for the tests of sanitisers."""

from pathlib import Path
from typing import Any

import torch

from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec
from tests.autoclave.training.test_loss import random_examples

HARMFUL = random_examples(19, seed=8, longest=50)
USER = random_examples(23, seed=9, longest=40)


def adapted(base_dir: Path, target: Any = "all-linear", r: int = 4, seed: int = 2) -> Any:
    """A model whose adapter is random in both factors."""
    model = attach(load_base(base_dir).model, LoraSpec(r=r, target_modules=target), seed=1)
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model
