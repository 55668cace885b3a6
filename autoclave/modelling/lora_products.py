"""The matrix products of frozen linear layers with LoRA, forward and backward, and nothing else.

Frozen layers need no gradient, and the sum of the two paths no copy: this computes W x + s B A x into one
tensor, and backward into one, with 1 + 2 and 1 + 4 products per layer. PEFT's layer has twice as many
operations, which on small steps is most of the time. Layers that read the same rows (query, key and value;
gate and up) share the product with A and its gradient, and their gradients by the rows meet in one tensor:
products of rank 48 run at twice the speed of those of rank 16.

Rows need not share an adapter: segments say which rows go through which (training/fused.py). One product
with W serves all of them; each adapter sees its own rows alone, so no job is in another's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Factors(NamedTuple):
    """W + scale * B @ A. A (r, in), B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


class Segment(NamedTuple):
    """Rows `start` to `end` go through these factors."""

    start: int
    end: int
    factors: Factors


class Layer(NamedTuple):
    """A linear layer that is not trained, `weight` (out, in) and `bias` (out,). Segments count rows of the
    flattened inputs and do not overlap; rows in none have no adapter."""

    weight: Tensor
    bias: Tensor | None
    segments: Sequence[Segment]


class _Span(NamedTuple):
    """Rows `start` to `end`, and how many layers have factors there."""

    start: int
    end: int
    num_layers: int


class _Place(NamedTuple):
    """Where the factors of a layer are: the span, their place among those of the span, and the scale."""

    span: int
    place: int
    scale: float


class Products:
    """Of layers on the same rows. `factors`, which the methods take, are A and B in turn, span by span.

    The order of the products is chosen for a CPU's caches: what was written last is read next.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._frozen = [(layer.weight, layer.bias) for layer in layers]
        self._places: list[list[_Place]] = [[] for _ in layers]
        found: dict[tuple[int, int], list[Factors]] = {}
        for places, layer in zip(self._places, layers, strict=True):
            for start, end, factors in layer.segments:
                beside = found.setdefault((start, end), [])
                places.append(_Place(list(found).index((start, end)), len(beside), factors.scale))
                beside.append(factors)
        self._spans = [_Span(*rows, len(beside)) for rows, beside in found.items()]
        self.factors = [
            factor for beside in found.values() for factors in beside for factor in (factors.A, factors.B)
        ]

    @property
    def num_inner(self) -> int:
        return len(self._spans)

    def forward(self, rows: Tensor, factors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(T, in) -> of each layer (T, out), and of each span of n rows A x (n, the sum of its ranks)."""
        As, Bs = self._of_spans(factors, rows.dtype)
        inner = [
            torch.mm(_part(rows, span), _stacked(own).T) for span, own in zip(self._spans, As, strict=True)
        ]
        columns = [_columns(products, own) for products, own in zip(inner, Bs, strict=True)]
        outputs = []
        for (weight, bias), places in zip(self._frozen, self._places, strict=True):
            output = functional.linear(rows, weight, bias)  # (T, out)
            for span, place, scale in places:
                B = Bs[span][place]
                _part(output, self._spans[span]).addmm_(columns[span][place], B.T, alpha=scale)
            outputs.append(output)
        return outputs, inner

    def backward(
        self,
        rows: Tensor,
        inner: Sequence[Tensor],
        factors: Sequence[Tensor],
        by_outputs: Sequence[Tensor],
        *,
        with_rows: bool,
    ) -> tuple[Tensor | None, list[Tensor]]:
        """The gradient by the rows (T, in), None without `with_rows`, and by each of the factors."""
        As, Bs = self._of_spans(factors, rows.dtype)
        by_inner = [torch.empty_like(products) for products in inner]
        columns, by_columns = (
            [_columns(products, own) for products, own in zip(all_, Bs, strict=True)]
            for all_ in (inner, by_inner)
        )
        by_Bs: list[list[Tensor]] = [list(own) for own in Bs]
        for by_output, places in zip(by_outputs, self._places, strict=True):
            for span, place, scale in places:
                by_own = _part(by_output, self._spans[span])  # (n, out)
                torch.mm(by_own, _by_columns(Bs[span][place] * scale), out=by_columns[span][place])
                by_Bs[span][place] = torch.mm(by_own.T, columns[span][place]).mul_(scale)  # (out, r)
        by_factors: list[Tensor] = []
        for of_span, by_products, own, by_own_Bs in zip(self._spans, by_inner, As, by_Bs, strict=True):
            by_As = torch.mm(by_products.T, _part(rows, of_span))  # (the sum of ranks, in)
            for by_A, by_B in zip(torch.split(by_As, [len(A) for A in own]), by_own_Bs, strict=True):
                by_factors += [by_A, by_B]
        by_factors = [by.to(factor.dtype) for by, factor in zip(by_factors, factors, strict=True)]
        return (self._by_rows(by_outputs, by_inner, As) if with_rows else None), by_factors

    def _by_rows(
        self, by_outputs: Sequence[Tensor], by_inner: Sequence[Tensor], As: Sequence[list[Tensor]]
    ) -> Tensor:
        (first, *others), (by_first, *by_others) = self._frozen, by_outputs
        by_rows = torch.mm(by_first, first[0])
        for (weight, _), by_output in zip(others, by_others, strict=True):
            by_rows.addmm_(by_output, weight)
        for span, by_products, own in zip(self._spans, by_inner, As, strict=True):
            _part(by_rows, span).addmm_(by_products, _by_columns(_stacked(own)))
        return by_rows

    def _of_spans(
        self, factors: Sequence[Tensor], dtype: torch.dtype
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """A and B of each span."""
        cast = iter([factor.to(dtype) for factor in factors])
        pairs = [[(next(cast), next(cast)) for _ in range(span.num_layers)] for span in self._spans]
        return [[A for A, _ in own] for own in pairs], [[B for _, B in own] for own in pairs]


def _part(rows: Tensor, span: _Span) -> Tensor:
    """A whole is not sliced: that takes microseconds, several times a layer."""
    return rows if span.end - span.start == len(rows) else rows[span.start : span.end]


def _stacked(As: list[Tensor]) -> Tensor:
    return As[0] if len(As) == 1 else torch.cat(As)


def _columns(products: Tensor, Bs: list[Tensor]) -> tuple[Tensor, ...]:
    """(n, sum of ranks) -> the columns of each."""
    return (products,) if len(Bs) == 1 else torch.split(products, [B.shape[1] for B in Bs], dim=1)


def _by_columns(matrix: Tensor) -> Tensor:
    """The same numbers, on a CPU column after column: so MKL multiplies by narrow matrices faster."""
    return matrix if matrix.is_cuda else matrix.T.contiguous().T
