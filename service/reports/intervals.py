"""Drawing: rates of several models as points with their 95 % intervals, a group per rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from service.reports import svg, words

_LEFT, _WIDTH = 29.0, 50.0  # of the plot, percent of the drawing
_ROW, _HEADING, _GAP, _TOP, _AXIS = 22, 24, 12, 4, 30  # pixels

Tone = Literal["base", "before", "after", "control"]
_COLOURS: dict[Tone, str] = {"base": svg.MUTED, "before": svg.BAD, "after": svg.ACCENT, "control": svg.WARN}


@dataclass(frozen=True)
class Estimate:
    """Percent; None: not measured. Without an interval the point stands alone."""

    label: str
    tone: Tone
    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Group:
    """`limit` is where the gate draws its line for `after`, percent; `limit_words` say on which side."""

    title: str
    estimates: Sequence[Estimate]
    limit: float | None = None
    limit_words: str = ""


def intervals(groups: Sequence[Group], *, name: str = "report-intervals") -> Markup | None:
    """None if nothing was measured."""
    measured = [group for group in groups if any(each.value is not None for each in group.estimates)]
    if not measured:
        return None
    rows: list[Markup] = []
    plot: list[Markup] = []
    y = float(_TOP)
    for group in measured:
        top = y + _HEADING
        bottom = top + _ROW * len(group.estimates)
        rows.append(svg.text(group.title, 0, y + 16, font_weight="600"))
        if group.limit is not None:
            rows.append(
                svg.text(
                    group.limit_words, 100, y + 16, text_anchor="end", fill=svg.MUTED, font_size=svg.SMALL
                )
            )
        plot += [svg.down(at, top, bottom, stroke=svg.LINE) for at in (0, 25, 50, 75, 100)]
        if group.limit is not None:
            plot.append(
                svg.down(
                    group.limit, top - 2, bottom + 2, stroke=svg.GOOD, stroke_width=2, stroke_dasharray="4 3"
                )
            )
        for index, estimate in enumerate(group.estimates):
            middle = top + _ROW * (index + 0.5)
            rows.append(svg.text(estimate.label, 2, middle + 4.5, font_size=svg.SMALL))
            rows.append(_value(estimate, middle))
            plot += _point(estimate, middle)
        y = bottom + _GAP
    plot += [
        svg.text(str(at), at, y + 6, text_anchor="middle", font_size=svg.SMALL, fill=svg.MUTED)
        for at in (0, 25, 50, 75, 100)
    ]
    plot.append(svg.text("percent", 50, y + 22, text_anchor="middle", font_size=svg.SMALL, fill=svg.MUTED))
    height = y + _AXIS
    return svg.drawing(
        name,
        "Rates of the base model, before and after sanitising",
        _description(measured),
        height,
        *rows,
        svg.panel(*plot, left=_LEFT, width=_WIDTH, top=0, height=height),
    )


def _value(estimate: Estimate, middle: float) -> Markup:
    shown = "none" if estimate.value is None else words.rate(estimate.value)
    return svg.text(shown, 100, middle + 4.5, text_anchor="end", font_size=svg.SMALL)


def _point(estimate: Estimate, middle: float) -> list[Markup]:
    colour = _COLOURS[estimate.tone]
    drawn: list[Markup] = []
    if estimate.low is not None and estimate.high is not None:
        low, high = _inside(estimate.low), _inside(estimate.high)
        drawn.append(svg.across(middle, low, high, stroke=colour, stroke_width=7, stroke_opacity=0.35))
        drawn += [svg.down(end, middle - 5, middle + 5, stroke=colour, stroke_width=2) for end in (low, high)]
    if estimate.value is not None:
        drawn.append(
            svg.element("circle", cx=svg.percent(_inside(estimate.value)), cy=middle, r=5, fill=colour)
        )
    return drawn


def _inside(value: float) -> float:
    return min(100.0, max(0.0, value))


def _description(groups: Sequence[Group]) -> str:
    """The points in words; intervals are in the table beside it."""
    said = []
    for group in groups:
        points = [f"{e.label} {words.rate(e.value)}" for e in group.estimates if e.value is not None]
        said.append(f"{group.title}: {', '.join(points)}" + (f"; {group.limit_words}" if group.limit else ""))
    return ". ".join(said) + "."
