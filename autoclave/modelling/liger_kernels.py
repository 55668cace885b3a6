"""Liger's kernels for norms, rotary positions and the product in the MLP, while a model is trained.

Optional (the extra `liger-kernel`), CUDA alone. Its cross entropy is not used: ours computes trained tokens
and no gradient for the frozen head (`training/head_loss.py`). Liger replaces forwards of modules and
functions of transformers' module for the architecture; all of that is put back, so that what is measured
after training is computed as ever. Before it is used it is compared with the model's own operations on the
device at hand. Untried on a GPU when it was written: none could be had.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from autoclave.errors import InputError, ModelError
from autoclave.modelling.backbone import backbone_of

PACKAGE = "liger-kernel"
_NOT_USED = {"cross_entropy": False, "fused_linear_cross_entropy": False}
_TOLERANCE = 2e-2  # of the largest number; bfloat16 keeps 8 bits


def refuse_liger_on(device: str | torch.device) -> None:
    """Raises InputError for a device on which they do not run, or if they are not installed."""
    if torch.device(device).type != "cuda":
        raise InputError("--liger is for CUDA: its kernels do not run on a CPU. Leave it out.")
    try:
        version(PACKAGE)
    except PackageNotFoundError as error:
        raise InputError(
            "--liger needs the package liger-kernel, which is not installed: pip install "
            "'autoclave[liger-kernel]', or train without it."
        ) from error


@contextmanager
def liger_kernels(model: Any) -> Iterator[None]:
    """Inside the block the model, with or without an adapter, computes with Liger's kernels. Raises
    ModelError for an architecture that Liger does not know or computes differently; the model is as it was
    then."""
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(causal.config.model_type)
    if apply is None:
        raise ModelError(f"Liger has no kernels for {type(causal).__name__}. Leave --liger out.")
    known = inspect.signature(apply).parameters
    off = {name: value for name, value in _NOT_USED.items() if name in known}
    with _put_back(causal):
        expected = _hidden(model)
        apply(model=causal, **off)
        difference = (_hidden(model) - expected).abs().max()
        if not difference <= _TOLERANCE * expected.abs().max():
            raise ModelError(
                f"Liger's kernels give {type(causal).__name__} other numbers than its own operations here "
                f"(by {float(difference):.3g}). Leave --liger out."
            )
        yield


@torch.no_grad()
def _hidden(model: Any) -> torch.Tensor:
    backbone = backbone_of(model)
    was_training = model.training
    model.eval()
    try:
        vocab_size, device = backbone.head.weight.shape[0], backbone.head.weight.device
        ids = torch.arange(16, device=device)[None] * 7 % vocab_size  # (1, 16)
        return backbone.hidden_states(ids).float()
    finally:
        model.train(was_training)


@contextmanager
def _put_back(causal: Any) -> Iterator[None]:
    """What the block changes of the model's modules and of the Python module that defines them."""
    of_class = vars(sys.modules[type(causal).__module__])
    definitions = dict(of_class)
    modules = [(module, dict(vars(module))) for module in causal.modules()]
    try:
        yield
    finally:
        for module, before in modules:
            own = vars(module)
            for name in own.keys() - before.keys():
                del own[name]
            own.update((name, value) for name, value in before.items() if own.get(name) is not value)
        for name in of_class.keys() - definitions.keys():
            del of_class[name]
        of_class.update(definitions)
