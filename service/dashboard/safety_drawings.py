"""Drawings of the page about safety, in the style of the report's (`service.reports.svg`)."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from service.dashboard.safety_view import Control, Distribution
from service.reports import svg

NUM_BINS = 20
BIN = 100 / NUM_BINS
_LEFT, _WIDTH = 0.5, 99.0  # of the bars, percent of the drawing
_TITLE, _BARS, _GAP, _AXIS = 24, 84, 18, 38  # pixels
_SPARK_WIDTH, _SPARK_HEIGHT = 200, 36


def bins(scores: Sequence[float]) -> list[int]:
    """How many are in each of NUM_BINS equal ranges from 0 to 100; 100 itself is in the last."""
    counts = [0] * NUM_BINS
    for score in scores:
        counts[min(NUM_BINS - 1, max(0, int(score // BIN)))] += 1
    return counts


def distributions(
    before: Sequence[float], after: Sequence[float], shown: tuple[Distribution | None, Distribution | None]
) -> Markup | None:
    """Both, one below the other on the same axis, so that the shift is seen. None without scores."""
    if not before and not after:
        return None
    parts: list[Markup] = []
    top = 0.0
    rows = (("Before sanitising", before, shown[0], svg.BAD), ("After sanitising", after, shown[1], svg.GOOD))
    for title, scores, about, colour in rows:
        words = f"{title}: {len(scores):,} jobs" + ("" if about is None else f", median {about.at[50]:.1f} %")
        parts.append(svg.text(words, 0, top + 14, font_size=svg.SMALL, fill=svg.MUTED))
        parts.append(
            svg.panel(*_bars(bins(scores), colour), left=_LEFT, width=_WIDTH, top=top + _TITLE, height=_BARS)
        )
        top += _TITLE + _BARS + _GAP
    parts.append(svg.panel(*_axis(), left=_LEFT, width=_WIDTH, top=top - _GAP, height=_AXIS))
    return svg.drawing(
        "harmful-scores",
        "Harmful scores of all jobs before and after sanitising",
        _in_words(shown),
        top - _GAP + _AXIS,
        *parts,
    )


def _bars(counts: Sequence[int], colour: str) -> list[Markup]:
    highest = max(*counts, 1)
    total = max(sum(counts), 1)
    drawn = [svg.across(_BARS, 0, 100, stroke=svg.LINE)]
    for index, count in enumerate(counts):
        if not count:
            continue
        height = max(2.0, count / highest * (_BARS - 14))
        left = index * BIN
        drawn.append(
            svg.element(
                "rect",
                svg.element(
                    "title",
                    f"{left:.0f} to {left + BIN:.0f} %: {count:,} jobs ({100 * count / total:.1f} % of them)",
                ),
                x=svg.percent(left + 0.15),
                y=_BARS - height,
                width=svg.percent(BIN - 0.3),
                height=height,
                rx=2,
                fill=colour,
            )
        )
        if count == highest:
            middle = left + BIN / 2
            drawn.append(
                svg.text(
                    f"{count:,}",
                    middle,
                    _BARS - height - 4,
                    text_anchor="middle",
                    font_size=svg.SMALL,
                    fill=svg.MUTED,
                )
            )
    return drawn


def _axis() -> list[Markup]:
    drawn = []
    for score in range(0, 101, 20):
        anchor = "start" if score == 0 else "end" if score == 100 else "middle"
        words = f"{score} %"
        drawn.append(svg.text(words, score, 16, text_anchor=anchor, font_size=svg.SMALL, fill=svg.MUTED))
    middle = svg.text("harmful score", 50, 34, text_anchor="middle", font_size=svg.SMALL, fill=svg.MUTED)
    return [*drawn, middle]


def _in_words(shown: Sequence[Distribution | None]) -> str:
    said = [
        f"{each.name}: {each.number} jobs, median {each.at[50]:.1f} percent, nine in ten at most "
        f"{each.at[90]:.1f} percent"
        for each in shown
        if each is not None
    ]
    return "; ".join(said) + "."


def control_line(control: Control, number: int) -> Markup:
    """The score of one control over time: a line without axes, its range in the table beside it."""
    middle, half = (control.high + control.low) / 2, max((control.high - control.low) / 2, 2.5)
    seconds = max(control.last_at - control.first_at, 1.0)

    def place(at: float, score: float) -> tuple[float, float]:
        x = 4 + (at - control.first_at) / seconds * (_SPARK_WIDTH - 8)
        return x, _SPARK_HEIGHT / 2 - (score - middle) / half * (_SPARK_HEIGHT / 2 - 5)

    places = [place(at, score) for at, score in control.points]
    colour = svg.ACCENT if control.is_steady else svg.BAD
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    title = f"Harmful score of {control.base_id} itself over time"
    if control.num_known:
        title = f"Known answers that the judge of {control.base_id} calls what they are, over time"
    return svg.element(
        "svg",
        svg.element("title", title, id=f"control-{number}-title"),
        svg.element("polyline", points=line, fill="none", stroke=colour, stroke_width=1.5),
        svg.element("circle", cx=places[-1][0], cy=places[-1][1], r=3, fill=colour),
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"control-{number}-title",
        width=_SPARK_WIDTH,
        height=_SPARK_HEIGHT,
        viewBox=f"0 0 {_SPARK_WIDTH} {_SPARK_HEIGHT}",
    )
