"""The MLP of the last decoder layer, for those tokens alone whose final state is read.

After the attention of the last layer no token looks at another. So a loss on some tokens needs that layer's
MLP for them alone: with half of the tokens trained, half of the largest part of a layer is saved, forward and
backward, and nothing changes but last bits. It shows in models of few layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoclave.modelling.backbone import Backbone
from autoclave.modelling.checkpointed_blocks import also_when_computed_again

_TOLERANCE = 1e-4  # of the largest state; a token that looks at another differs far more


class LastMlp:
    def __init__(self, mlp: Any) -> None:
        self._mlp = mlp

    @classmethod
    def of(cls, backbone: Backbone, device: str | torch.device) -> LastMlp | None:
        """None where it is not known to be the same, found by running eight tokens both ways, and on a GPU,
        where models have many layers and rows are best left in one shape. The model must be in eval mode."""
        layers = getattr(backbone.decoder, "layers", None)
        mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, torch.nn.ModuleList) else None
        if mlp is None or torch.device(device).type != "cpu":
            return None
        last = cls(mlp)
        return last if last._gives_the_same(backbone) else None

    @contextmanager
    def only(self, tokens: Tensor) -> Iterator[None]:
        """Inside the block, the MLP is computed for these tokens, places (N,) in the flattened rows, and
        gives 0 for others. For all of them where somebody looks at it: hooks see what the model computes."""
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._mlp.modules()):
            yield
            return
        with also_when_computed_again(partial(self._narrowed_to, tokens)), self._narrowed_to(tokens):
            yield

    @contextmanager
    def _narrowed_to(self, tokens: Tensor) -> Iterator[None]:
        shape = torch.Size()

        def narrowed(_mlp: Any, inputs: tuple[Tensor]) -> Tensor:
            nonlocal shape
            shape = inputs[0].shape  # (B, T, D)
            return inputs[0].flatten(0, 1).index_select(0, tokens)[None]  # (1, N, D)

        def widened(_mlp: Any, _inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise NotImplementedError(f"an MLP that gives a {type(output).__name__}")
            whole = output.new_zeros(shape).flatten(0, 1)  # (B * T, D)
            return whole.index_copy(0, tokens, output[0]).view(shape)

        handles = (
            self._mlp.register_forward_pre_hook(narrowed),
            self._mlp.register_forward_hook(widened),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def _gives_the_same(self, backbone: Backbone) -> bool:
        vocab_size = backbone.head.weight.shape[0]
        ids = torch.arange(8)[None] * 7 % vocab_size  # (1, 8)
        tokens = torch.tensor([1, 4, 5, 7])
        whole = backbone.hidden_states(ids)[0, tokens].float()
        try:
            with self.only(tokens):
                found = backbone.hidden_states(ids)[0, tokens].float()
        except (NotImplementedError, RuntimeError, TypeError, ValueError):  # an MLP of another form
            return False
        return bool((found - whole).abs().max() <= _TOLERANCE * whole.abs().max())
