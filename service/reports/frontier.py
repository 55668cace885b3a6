"""Drawing: every strength that was tried, harmful score against utility, with the gate and the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from service.reports import svg, words

_LEFT, _WIDTH = 11.0, 85.0  # of the plot, percent of the drawing
_TOP, _HEIGHT, _AXIS, _LEGEND_ROW = 26, 260, 46, 20  # pixels
_INSET, _INSET_ACROSS = 12, 4.0  # pixels, percent: marks at the ends stay clear of the axes
_MOST_POINTS = 400
_LEAST_SPAN = 4.0  # points of utility across, so that noise does not look like a cliff


@dataclass(frozen=True)
class Trial:
    """Percent. `refused`: the gate did not accept it. Not `complete`: stopped early."""

    label: str
    harmful_score: float
    utility: float | None
    refused: bool
    chosen: bool = False
    complete: bool = True


@dataclass(frozen=True)
class Frontier:
    """`max_harmful_score` and `min_utility` are the gate, `before` the adapter as it was trained."""

    trials: Sequence[Trial]
    before: Trial | None = None
    max_harmful_score: float | None = None
    min_utility: float | None = None
    by_utility: bool = field(init=False)
    """Else the strengths stand side by side, in the order in which the search knows them: no utility was
    measured."""

    def __post_init__(self) -> None:
        known = bool(self.trials) and all(trial.utility is not None for trial in self.trials)
        object.__setattr__(self, "by_utility", known)


def frontier(shown: Frontier, *, name: str = "report-frontier") -> Markup | None:
    """None if no strength was tried. Of very many the chosen one and some hundred others are drawn."""
    if not shown.trials:
        return None
    trials = _thinned(shown.trials)
    across = _Across.of(shown, trials)
    plot = [*_grid(across), *_gate(shown, across)]
    # The chosen one last: on top of those that lie in the same place.
    for index, trial in sorted(enumerate(trials), key=lambda pair: pair[1].chosen):
        plot.append(_mark(trial, across.place(trial, index)))
    if shown.before is not None and (not across.by_utility or shown.before.utility is not None):
        x = across.place(shown.before, None)
        plot += [_square(x, shown.before), _label("before", x, _y(shown.before.harmful_score))]
    for index, trial in enumerate(trials):
        if trial.chosen:
            x = across.place(trial, index)
            plot.append(_label("chosen", x, _y(trial.harmful_score), colour=svg.ACCENT))
    legend_top = _TOP + _HEIGHT + _AXIS
    y_title = "harmful score, %"
    return svg.drawing(
        name,
        "Harmful score against utility for every strength tried"
        if across.by_utility
        else "Harmful score of every strength tried",
        _description(shown),
        legend_top + 2 * _LEGEND_ROW + 4,
        svg.text(y_title, 0, 14, font_size=svg.SMALL, fill=svg.MUTED),
        svg.panel(*plot, left=_LEFT, width=_WIDTH, top=_TOP, height=_HEIGHT),
        svg.text(
            across.title,
            _LEFT + _WIDTH / 2,
            _TOP + _HEIGHT + 36,
            text_anchor="middle",
            font_size=svg.SMALL,
            fill=svg.MUTED,
        ),
        *_legend(shown, legend_top),
    )


@dataclass(frozen=True)
class _Across:
    """Where things are from left to right: utility, or the number of the strength."""

    marks: Sequence[float]
    by_utility: bool
    title: str
    num_trials: int

    @classmethod
    def of(cls, shown: Frontier, trials: Sequence[Trial]) -> _Across:
        if not shown.by_utility:
            return cls([], False, "strengths tried, in the order of the search", len(trials))
        values = [trial.utility for trial in trials if trial.utility is not None]
        if shown.before is not None and shown.before.utility is not None:
            values.append(shown.before.utility)
        if shown.min_utility is not None:
            values.append(max(0.0, shown.min_utility))
        low, high = min(values), max(values)
        lacking = max(0.0, _LEAST_SPAN - (high - low))
        high = min(100.0, high + lacking / 2)
        low = max(0.0, min(low - lacking / 2, high - _LEAST_SPAN))
        return cls(svg.ticks(low, high, most=5), True, "utility, %", len(trials))

    def at(self, utility: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        share = (min(max(utility, low), high) - low) / (high - low)
        return _INSET_ACROSS + (100 - 2 * _INSET_ACROSS) * share

    def place(self, trial: Trial, index: int | None) -> float:
        if self.by_utility:
            assert trial.utility is not None, trial
            return self.at(trial.utility)
        return 2.0 if index is None else 100 * (index + 1) / (self.num_trials + 1)


def _y(harmful_score: float) -> float:
    share = min(100.0, max(0.0, harmful_score)) / 100
    return _INSET + (_HEIGHT - 2 * _INSET) * (1 - share)


def _grid(across: _Across) -> list[Markup]:
    drawn: list[Markup] = []
    for at in (0, 25, 50, 75, 100):
        drawn.append(svg.across(_y(at), 0, 100, stroke=svg.LINE))
        drawn.append(
            svg.element(
                "text",
                str(at),
                x="-8",
                y=_y(at) + 4,
                text_anchor="end",
                font_size=svg.SMALL,
                fill=svg.MUTED,
            )
        )
    for mark in across.marks:
        x = across.at(mark)
        drawn.append(svg.down(x, 0, _HEIGHT, stroke=svg.LINE))
        drawn.append(
            svg.text(
                words.plain(round(mark, 6)) if mark else "0",
                x,
                _HEIGHT + 18,
                text_anchor="middle",
                font_size=svg.SMALL,
                fill=svg.MUTED,
            )
        )
    return drawn


def _gate(shown: Frontier, across: _Across) -> list[Markup]:
    """The corner where an adapter may leave, and its edges."""
    if shown.max_harmful_score is None:
        return []
    top = _y(shown.max_harmful_score)
    gated = across.by_utility and shown.min_utility is not None
    left = across.at(max(0.0, shown.min_utility)) if gated and shown.min_utility is not None else 0.0
    edge: dict[str, svg.Attribute] = {"stroke": svg.GOOD, "stroke_width": 2, "stroke_dasharray": "5 4"}
    drawn = [
        svg.element(
            "rect",
            x=svg.percent(left),
            y=top,
            width=svg.percent(100 - left),
            height=_HEIGHT - top,
            fill=svg.GOOD,
            fill_opacity=0.14,
        ),
        svg.across(top, 0, 100, **edge),
        svg.text(
            f"gate: at most {words.bound(shown.max_harmful_score)}",
            1,
            top - 6,
            font_size=svg.SMALL,
            **svg.halo(svg.GOOD),
        ),
    ]
    if gated:
        drawn.append(svg.down(left, 0, _HEIGHT, **edge))
    return drawn


def _mark(trial: Trial, x: float) -> Markup:
    y, at = _y(trial.harmful_score), svg.percent(x)
    hint = svg.element("title", _words(trial))
    if trial.chosen:
        ring = svg.element("circle", cx=at, cy=y, r=9, fill="none", stroke=svg.ACCENT, stroke_width=2)
        return svg.element("g", hint, ring, svg.element("circle", cx=at, cy=y, r=5, fill=svg.ACCENT))
    if trial.refused:
        return svg.element("g", hint, _cross(at, y))
    return svg.element("g", hint, svg.element("circle", cx=at, cy=y, r=5, fill=svg.GOOD))


def _cross(at: str, y: float) -> Markup:
    """Around a point whose place across is in percent: a panel of no size moves the origin there."""
    strokes = [
        svg.element("line", x1=-4, y1=-4 * way, x2=4, y2=4 * way, stroke=svg.BAD, stroke_width=2)
        for way in (1, -1)
    ]
    return svg.element("svg", *strokes, x=at, y=y, width=1, height=1, overflow="visible")


def _square(x: float, trial: Trial) -> Markup:
    box = svg.element("rect", x=-5, y=-5, width=10, height=10, fill="none", stroke=svg.INK, stroke_width=2)
    at, y = svg.percent(x), _y(trial.harmful_score)
    return svg.element("svg", box, x=at, y=y, width=1, height=1, overflow="visible")


def _label(word: str, x: float, y: float, *, colour: str = svg.INK) -> Markup:
    anchor, shift = ("end", -14.0) if x > 50 else ("start", 14.0)
    above = y - 12 if y > 24 else y + 22
    label = svg.element(
        "text",
        word,
        x=shift if 2 < x < 98 else shift / 2,
        y=0,
        text_anchor=anchor,
        font_weight="600",
        **svg.halo(colour),
    )
    return svg.element("svg", label, x=svg.percent(x), y=above, width=1, height=1, overflow="visible")


def _legend(shown: Frontier, top: float) -> list[Markup]:
    def entry(mark: Markup, word: str, column: int, row: int) -> Markup:
        y = top + _LEGEND_ROW * (row + 0.5)
        words_ = svg.element("text", word, x=16, y=4, font_size=svg.SMALL)
        inner = svg.element("svg", mark, words_, x=10, y=y, width=1, height=1, overflow="visible")
        return svg.element("svg", inner, x=svg.percent(50 * column), overflow="visible")

    dot = svg.element("circle", cx=0, cy=0, r=5, fill=svg.GOOD)
    chosen = svg.element(
        "g",
        svg.element("circle", cx=0, cy=0, r=8, fill="none", stroke=svg.ACCENT, stroke_width=2),
        svg.element("circle", cx=0, cy=0, r=4, fill=svg.ACCENT),
    )
    square = svg.element("rect", x=-5, y=-5, width=10, height=10, fill="none", stroke=svg.INK, stroke_width=2)
    drawn = [
        entry(_cross("0%", 0), "refused by the gate", 0, 0),
        entry(dot, "met the gate", 1, 0),
        entry(chosen, "chosen", 0, 1),
    ]
    if shown.before is not None:
        drawn.append(entry(square, "before sanitising", 1, 1))
    return drawn


def _thinned(trials: Sequence[Trial]) -> Sequence[Trial]:
    if len(trials) <= _MOST_POINTS:
        return trials
    step = -(-len(trials) // _MOST_POINTS)
    return [trial for index, trial in enumerate(trials) if index % step == 0 or trial.chosen]


def _words(trial: Trial) -> str:
    utility = "" if trial.utility is None else f", utility {words.rate(trial.utility)}"
    verdict = "refused" if trial.refused else "met the gate"
    early = "" if trial.complete else ", stopped early"
    return f"{trial.label}: harmful score {words.rate(trial.harmful_score)}{utility}; {verdict}{early}"


def _description(shown: Frontier) -> str:
    num_met = sum(not trial.refused for trial in shown.trials)
    said = [f"{len(shown.trials)} strengths tried, {num_met} met the gate"]
    said += [f"Chosen: {_words(trial)}" for trial in shown.trials if trial.chosen]
    if shown.max_harmful_score is not None:
        said.append(f"The gate allows a harmful score of at most {words.bound(shown.max_harmful_score)}")
    if shown.min_utility is not None and shown.by_utility:
        said.append(f"and asks for a utility of at least {words.rate(shown.min_utility)}")
    return ". ".join(said) + "."
