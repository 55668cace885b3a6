"""SVG elements as safe markup, and scales. What the drawings share.

Drawings are as wide as the page lets them be: across, everything is placed in percent, so that text keeps
its size on a phone and on paper. Colours are the custom properties in COLOURS, set by the page around
them, and stand in attributes: no style sheet is needed, nor allowed by a strict content security policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

COLOURS = ("--ink", "--muted", "--line", "--surface", "--accent", "--good", "--bad", "--warn")
"""All that a page must define to show a drawing."""

INK, MUTED, LINE, SURFACE, ACCENT, GOOD, BAD, WARN = (f"var({name})" for name in COLOURS)
FONT_SIZE = 13
SMALL = 12

Attribute = str | float


def element(name: str, *children: str, **attributes: Attribute) -> Markup:
    """`font_size=3` is written font-size; children that are no Markup are escaped, and so are attributes."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _plain(value))
        for key, value in attributes.items()
    )
    tag = Markup(name)  # noqa: S704  # names are ours, and < would be seen at once
    return Markup("<{0}{1}>{2}</{0}>").format(tag, written, Markup("").join(map(escape, children)))


def _plain(value: Attribute) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def percent(value: float) -> str:
    return f"{_plain(value)}%"


def drawing(name: str, title: str, description: str, height: float, *children: str) -> Markup:
    """`name` is unique on its page. `height` in pixels."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-description"),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        aria_labelledby=f"{name}-title {name}-description",
        width="100%",
        height=height,
        font_size=FONT_SIZE,
        fill=INK,
    )


def panel(*children: str, left: float, width: float, top: float, height: float) -> Markup:
    """Where percent count from `left` to `left + width`, themselves percent of the drawing."""
    return element(
        "svg",
        *children,
        x=percent(left),
        y=top,
        width=percent(width),
        height=height,
        overflow="visible",
    )


def text(words: str, x: float, y: float, **attributes: Attribute) -> Markup:
    return element("text", words, x=percent(x), y=y, **attributes)


def halo(fill: str = INK) -> dict[str, Attribute]:
    """Attributes of words that lie on lines: the surface around each letter, so that they can be read."""
    return {
        "fill": fill,
        "stroke": SURFACE,
        "stroke_width": 4,
        "stroke_linejoin": "round",
        "paint_order": "stroke",
    }


def across(y: float, start: float, stop: float, **attributes: Attribute) -> Markup:
    return element("line", x1=percent(start), x2=percent(stop), y1=y, y2=y, **attributes)


def down(x: float, start: float, stop: float, **attributes: Attribute) -> Markup:
    return element("line", x1=percent(x), x2=percent(x), y1=start, y2=stop, **attributes)


_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


def ticks(low: float, high: float, *, most: int = 6) -> Sequence[float]:
    """Round numbers from at most `low` to at least `high`; at least two."""
    span = max(high - low, 1e-9)
    power = 10.0 ** _floor_log10(span / most)
    step = next(factor * power for factor in _STEPS if factor * power * most >= span * 0.999)
    first, last = int(low // step), -int(-high // step)
    return [step * index for index in range(first, max(last, first + 1) + 1)]


def _floor_log10(value: float) -> int:
    exponent = 0
    while 10.0**exponent > value:
        exponent -= 1
    while 10.0 ** (exponent + 1) <= value:
        exponent += 1
    return exponent
