"""Drawing: which share of its entries each decoder layer of the adapter lost, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from service.reports import svg, words

_LEFT, _WIDTH = 14.0, 84.0  # of the plot, percent of the drawing
_TOP, _HEIGHT, _AXIS = 28, 130, 42  # pixels
_MOST_VALUES = 6  # columns that are wide enough on a phone to carry a number
_MOST_LABELS = 16


@dataclass(frozen=True)
class Layer:
    """`fraction` of the entries of the adapter's factors in it, between 0 and 1."""

    label: str
    fraction: float


def sparsity(
    layers: Sequence[Layer], *, overall: float | None = None, name: str = "report-sparsity"
) -> Markup | None:
    """`overall` is the fraction of all entries. None if nothing is known of any layer."""
    if not layers:
        return None
    highest = max([each.fraction for each in layers] + ([] if overall is None else [overall]))
    marks = svg.ticks(0.0, max(100 * highest, 1e-6), most=4)
    top_mark = marks[-1]

    def y(fraction: float) -> float:
        return _HEIGHT * (1 - min(1.0, max(0.0, 100 * fraction / top_mark)))

    plot: list[Markup] = []
    for mark in marks:
        plot.append(svg.across(y(mark / 100), 0, 100, stroke=svg.LINE))
        plot.append(
            svg.element(
                "text",
                f"{mark:.3g}",
                x="-8",
                y=y(mark / 100) + 4,
                text_anchor="end",
                font_size=svg.SMALL,
                fill=svg.MUTED,
            )
        )
    slot = 100 / len(layers)
    values: list[Markup] = []
    every = -(-len(layers) // _MOST_LABELS)
    for index, layer in enumerate(layers):
        middle, top = slot * (index + 0.5), y(layer.fraction)
        column = svg.element(
            "rect",
            svg.element("title", f"layer {layer.label}: {words.share(layer.fraction)}"),
            x=svg.percent(slot * (index + 0.15)),
            y=top,
            width=svg.percent(slot * 0.7),
            height=_HEIGHT - top,
            fill=svg.ACCENT,
        )
        plot.append(column)
        if index % every == 0:
            plot.append(_centred(layer.label, middle, _HEIGHT + 17, svg.MUTED))
        if len(layers) <= _MOST_VALUES:
            label = words.share(layer.fraction)
            values.append(
                svg.text(label, middle, top - 6, text_anchor="middle", font_size=svg.SMALL, **svg.halo())
            )
    if overall is not None:
        plot.append(svg.across(y(overall), 0, 100, stroke=svg.INK, stroke_dasharray="4 3"))
    return svg.drawing(
        name,
        "Pruned share of each layer",
        _description(layers, overall),
        _TOP + _HEIGHT + _AXIS,
        svg.text("pruned, %", 0, 14, font_size=svg.SMALL, fill=svg.MUTED),
        svg.panel(*plot, *values, left=_LEFT, width=_WIDTH, top=_TOP, height=_HEIGHT),
        _centred("decoder layer", _LEFT + _WIDTH / 2, _TOP + _HEIGHT + 36, svg.MUTED),
    )


def _centred(label: str, x: float, y: float, colour: str) -> Markup:
    return svg.text(label, x, y, text_anchor="middle", font_size=svg.SMALL, fill=colour)


def _description(layers: Sequence[Layer], overall: float | None) -> str:
    least, most = (choose(layers, key=lambda each: each.fraction) for choose in (min, max))
    said = f"{len(layers)} layers, from {words.share(least.fraction)} to {words.share(most.fraction)}"
    return said + ("." if overall is None else f"; {words.share(overall)} of all entries, the dashed line.")
