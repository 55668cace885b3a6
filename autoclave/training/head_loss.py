"""Cross entropy through a frozen output head, without ever holding the logits of all tokens.

For a large vocabulary the logits are the largest tensor of a step: here they exist for a few rows at a time.
As the head is not trained, the gradient by the hidden states is all that is needed of them, and it is
computed with the loss: no logits are kept for the backward pass, none are computed twice, and the head gets
no gradient. Two matrix products per row, as few as there can be.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from autoclave.memory import LOGITS_AT_ONCE
from autoclave.modelling.backbone import Backbone


class TokenLosses(NamedTuple):
    """`losses` (N,) in nats, float32 (float64 for a model of that type), with a graph; `is_right` (N,) bool:
    whether the target has the highest logit (of equal ones the first counts)."""

    losses: Tensor
    is_right: Tensor


def token_losses(backbone: Backbone, hidden: Tensor, targets: Tensor) -> TokenLosses:
    """Cross entropy of `targets` (N,) given `hidden` (N, D), per token.

    Through all logits at once if the head is trained or is more than a linear layer (`why_not_frozen`).
    """
    if why_not_frozen(backbone.head) is not None:
        return _through_all_logits(backbone, hidden, targets)
    head = _Head(backbone.head.weight, backbone.head.bias, backbone.logit_scale, backbone.softcap)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return TokenLosses(*_FrozenHead.apply(hidden, targets, head))  # type: ignore[no-untyped-call]
    losses, is_right, _ = _in_chunks(hidden, targets, head, with_gradient=False)
    return TokenLosses(losses, is_right)


def why_not_frozen(head: Any) -> str | None:
    """Why the loss must go through the head as a module, None if it need not."""
    if type(head) is not nn.Linear:  # LoRA, a module to save, quantised
        return f"the output head is a {type(head).__name__}, no plain linear layer"
    if head.weight.requires_grad or (head.bias is not None and head.bias.requires_grad):
        return "the output head (or the embeddings it shares its weight with) is trained"
    if head._forward_hooks or head._forward_pre_hooks:
        return "the output head has hooks"
    return None


class _Head(NamedTuple):
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: _Head) -> tuple[Tensor, Tensor]:
        losses, is_right, gradient = _in_chunks(hidden, targets, head, with_gradient=True)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(is_right)
        return losses, is_right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_losses: Tensor, _by_is_right: Any) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors  # (N, D)
        return gradient * by_losses[:, None].to(gradient.dtype), None, None


@torch.no_grad()
def _in_chunks(
    hidden: Tensor, targets: Tensor, head: _Head, *, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses (N,), whether right (N,), and the gradient (N, D) of each loss by its own row."""
    num_rows, vocabulary = len(hidden), len(head.weight)
    losses = hidden.new_empty(num_rows, dtype=torch.promote_types(hidden.dtype, torch.float32))
    is_right = hidden.new_empty(num_rows, dtype=torch.bool)
    gradient = torch.empty_like(hidden) if with_gradient else None
    chunk_rows = max(1, LOGITS_AT_ONCE["cuda" if hidden.is_cuda else "cpu"] // vocabulary)
    # The largest tensor of a step is made once, and the softmax is computed in its place: on a CPU, pages
    # that the kernel has to find anew cost more than the softmax.
    room = hidden.new_empty((min(num_rows, chunk_rows), vocabulary), dtype=head.weight.dtype)
    for start in range(0, num_rows, chunk_rows):
        rows = slice(start, start + chunk_rows)
        losses[rows], is_right[rows], by_products = _chunk(
            hidden[rows], targets[rows], head, room, with_gradient
        )
        if gradient is not None:
            torch.mm(by_products, head.weight, out=gradient[rows])
    return losses, is_right, gradient


def _chunk(
    hidden: Tensor, targets: Tensor, head: _Head, room: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of C rows: losses (C,), whether right (C,), and the gradient of each loss by what the head gives for
    its row, (C, V) in the type of the head (softmax minus one-hot, if nothing comes after the head).

    Writes to `room`, a tensor of at least C rows; the gradient is good until the next call."""
    logits = room[: len(hidden)]  # (C, V)
    if head.bias is None:
        torch.mm(hidden, head.weight.T, out=logits)
    else:
        torch.addmm(head.bias, hidden, head.weight.T, out=logits)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.scale != 1.0:
        logits *= head.scale
    if head.softcap is not None:
        bent = logits.div_(head.softcap).tanh_()
        logits = bent * head.softcap
    highest = logits.amax(dim=-1)  # (C,)
    wanted = targets[:, None]
    at_target = logits.gather(1, wanted)[:, 0]  # (C,)
    is_right = _is_right(logits, targets, at_target == highest)
    probabilities = torch.softmax(logits, dim=-1, out=logits)
    # The highest probability is 1 / sum of exp(logit - highest), and never too small for a logarithm.
    losses = highest - at_target - probabilities.amax(dim=-1).log()
    if with_gradient:
        probabilities.scatter_add_(1, wanted, probabilities.new_full(wanted.shape, -1.0))
        if head.softcap is not None:
            probabilities *= bent.square_().neg_().add_(1)
        if head.scale != 1.0:
            probabilities *= head.scale
    return losses, is_right, probabilities.to(head.weight.dtype)


def _is_right(logits: Tensor, targets: Tensor, may_be: Tensor) -> Tensor:
    """(C,): whether the target is the first of the highest logits; `may_be` is whether it is one of them.

    On a CPU the place of the highest takes twenty times as long to find as its value, so it is looked for in
    those rows alone."""
    if logits.is_cuda:  # which rows those are would have to be waited for
        return logits.argmax(dim=-1) == targets
    (rows,) = torch.nonzero(may_be, as_tuple=True)
    may_be[rows] = logits[rows].argmax(dim=-1) == targets[rows]
    return may_be


def _through_all_logits(backbone: Backbone, hidden: Tensor, targets: Tensor) -> TokenLosses:
    logits = backbone.logits(hidden)  # (N, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = functional.cross_entropy(logits, targets, reduction="none")
    return TokenLosses(losses, logits.detach().argmax(dim=-1) == targets)
