"""Activation checkpointing: a decoder block keeps its input alone, and is computed again when it is needed.

What a block computes in the forward pass is most of the memory of training. Forgotten and computed again in
the backward pass, one block at a time, it is there once instead of once per layer, for one more forward pass.
The same operations on the same numbers with the same random draws give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

from torch import is_grad_enabled
from torch.utils.checkpoint import checkpoint

from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.layer_parts import decoder_layers

_AROUND_AGAIN: ContextVar[tuple[Callable[[], AbstractContextManager[None]], ...]] = ContextVar(
    "around_again", default=()
)


@contextmanager
def also_when_computed_again(around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Blocks that run inside are computed again inside of what `around` gives: for what changes a block's
    computation during a pass and is gone when the backward pass needs it. It is not entered here."""
    token = _AROUND_AGAIN.set((*_AROUND_AGAIN.get(), around))
    try:
        yield
    finally:
        _AROUND_AGAIN.reset(token)


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
        """`forward` as it is now. The backward pass calls it once more after whoever packed a row has put the
        model's own attention back, and on CUDA in a thread that knows no context."""
        attention, context, config = self._config._attn_implementation, copy_context(), self._config
        around_again = _AROUND_AGAIN.get()
        is_first = True

        def run(*inputs: Any, **named: Any) -> Any:
            nonlocal is_first
            around, is_first = () if is_first else around_again, False
            before = config._attn_implementation
            with ExitStack() as stack:
                if before != attention:
                    config._attn_implementation = attention
                    stack.callback(setattr, config, "_attn_implementation", before)
                for each in around:
                    stack.enter_context(each())
                return context.run(forward, *inputs, **named)

        return run


def _put_back(layer: Any, forward: Any) -> None:
    if forward is None:
        del layer.forward
    else:
        layer.forward = forward
