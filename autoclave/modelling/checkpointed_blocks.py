"""Activation checkpointing: a decoder block keeps its input alone, and is computed again when it is needed.

What a block computes in the forward pass is most of the memory of training. Forgotten and computed again in
the backward pass, one block at a time, it is there once instead of once per layer, for one more forward pass.
The same operations on the same numbers with the same random draws give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

from torch import is_grad_enabled
from torch.utils.checkpoint import checkpoint

from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.layer_parts import decoder_layers


class CheckpointedBlocks:
    """Inside `installed`, the decoder layers of `model` are computed again in the backward pass while `on` is
    true; it may change between passes. Passes without a gradient are as ever. Hooks that change what a block
    computes must stay until the backward pass is over. Raises ModelError for an architecture without a list
    of layers."""

    def __init__(self, model: Any, *, on: bool = False) -> None:
        self._layers = decoder_layers(model)
        self._config = backbone_of(model).decoder.config
        self.on = on

    @contextmanager
    def installed(self) -> Iterator[int]:
        """Yields how many layers there are. Around blocks that are compiled, if both are wanted."""
        with ExitStack() as stack:
            for layer in self._layers:
                before = vars(layer).get("forward")
                layer.forward = self._checkpointed(layer.forward)
                stack.callback(_put_back, layer, before)
            yield len(self._layers)

    def _checkpointed(self, forward: Any) -> Any:
        def checkpointed(*inputs: Any, **named: Any) -> Any:
            if not (self.on and is_grad_enabled()):
                return forward(*inputs, **named)
            return checkpoint(self._as_now(forward), *inputs, use_reentrant=False, **named)

        return checkpointed

    def _as_now(self, forward: Any) -> Any:
        """`forward` under the attention that is set now. The backward pass calls it after whoever packed a
        row has put the model's own attention back, and on CUDA in a thread that knows no context."""
        attention, context, config = self._config._attn_implementation, copy_context(), self._config

        def run(*inputs: Any, **named: Any) -> Any:
            before = config._attn_implementation
            if before == attention:
                return context.run(forward, *inputs, **named)
            config._attn_implementation = attention
            try:
                return context.run(forward, *inputs, **named)
            finally:
                config._attn_implementation = before

        return run


def _put_back(layer: Any, forward: Any) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward
