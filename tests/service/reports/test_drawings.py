"""Drawings say what is in the data, keep inside their frame, and use no colour but the theme's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from service.reports import svg
from service.reports.frontier import Frontier, Trial, frontier
from service.reports.intervals import Estimate, Group, intervals
from service.reports.sparsity import Layer, sparsity

NAMESPACE = "{http://www.w3.org/2000/svg}"
percents = st.floats(0, 100)


def parsed(drawing: Markup | None) -> ElementTree.Element:
    assert drawing is not None
    return ElementTree.fromstring(drawing)


def check(drawing: Markup | None) -> ElementTree.Element:
    root = parsed(drawing)
    assert [child.tag for child in root[:2]] == [f"{NAMESPACE}title", f"{NAMESPACE}desc"]
    assert all(child.text for child in root[:2])
    assert {f"var({name})" for name in svg.COLOURS} >= set(re.findall(r"var\([^)]*\)", str(drawing)))
    for node in root.iter():
        for name in ("fill", "stroke"):
            assert node.get(name, "none") == "none" or node.get(name, "").startswith("var(--"), node.attrib
        for name in ("x", "x1", "x2", "cx", "width"):
            value = node.get(name, "0")
            if value.endswith("%"):
                assert -0.01 <= float(value[:-1]) <= 100.01, node.attrib
        assert "style" not in node.attrib
        assert "nan" not in "".join(node.attrib.values())
    return root


@given(st.lists(st.tuples(percents, percents, percents), min_size=1, max_size=4), st.none() | percents)
def test_intervals(values: Sequence[tuple[float, float, float]], limit: float | None) -> None:
    estimates = [Estimate("who", "after", middle, min(a, b), max(a, b)) for a, middle, b in values]
    root = check(intervals([Group("Rate", estimates, limit, "gate: at most it")]))
    circles = root.findall(f".//{NAMESPACE}circle")
    assert [float((c.get("cx") or "")[:-1]) for c in circles] == pytest.approx(
        [middle for _, middle, _ in values], abs=0.006
    )


def test_nothing_measured_draws_nothing() -> None:
    assert intervals([Group("Rate", [Estimate("who", "after", None)])]) is None
    assert frontier(Frontier([])) is None
    assert sparsity([]) is None


def test_a_point_without_an_interval_stands_alone() -> None:
    root = check(intervals([Group("Rate", [Estimate("who", "base", 3.0), Estimate("x", "after", None)])]))
    assert len(root.findall(f".//{NAMESPACE}circle")) == 1


trials = st.builds(
    Trial,
    label=st.text("<&>\"'ab", max_size=5),
    harmful_score=percents,
    utility=percents,
    refused=st.booleans(),
    chosen=st.booleans(),
)


@given(
    st.lists(trials, min_size=1, max_size=20),
    st.none() | trials,
    st.none() | percents,
    st.none() | st.floats(-50, 100),
)
def test_frontier(
    tried: list[Trial], before: Trial | None, highest: float | None, lowest: float | None
) -> None:
    shown = Frontier(tried, before, highest, lowest)
    assert shown.by_utility
    root = check(frontier(shown))
    marks = [g for g in root.iter(f"{NAMESPACE}g") if g.find(f"{NAMESPACE}title") is not None]
    assert len(marks) == len(tried)


def places(drawing: Markup | None) -> dict[str, tuple[float, float]]:
    """Of the marks that are circles, by the first word of their hint."""
    found = {}
    for group in parsed(drawing).iter(f"{NAMESPACE}g"):
        hint, circle = group.find(f"{NAMESPACE}title"), group.find(f"{NAMESPACE}circle")
        if hint is not None and circle is not None:
            x, y = circle.get("cx") or "", circle.get("cy") or ""
            found[(hint.text or "").split(":")[0]] = float(x[:-1]), float(y)
    return found


def test_better_is_right_and_safer_is_down() -> None:
    tried = [
        Trial("weak", 80.0, 95.0, refused=False),
        Trial("strong", 5.0, 60.0, refused=False),
        Trial("best", 5.0, 94.0, refused=False, chosen=True),
    ]
    at = places(frontier(Frontier(tried, max_harmful_score=10.0, min_utility=90.0)))
    assert at["weak"][1] < at["strong"][1] == at["best"][1]
    assert at["strong"][0] < at["best"][0] < at["weak"][0]


def test_the_chosen_point_lies_in_the_gates_corner() -> None:
    tried = [Trial("best", 9.0, 94.0, refused=False, chosen=True), Trial("bad", 11.0, 88.0, refused=False)]
    drawing = frontier(Frontier(tried, max_harmful_score=10.0, min_utility=90.0))
    (corner,) = [rect for rect in parsed(drawing).iter(f"{NAMESPACE}rect") if rect.get("fill-opacity")]
    left, top = float((corner.get("x") or "")[:-1]), float(corner.get("y") or "")
    at = places(drawing)
    assert left < at["best"][0]
    assert top < at["best"][1]
    assert left > at["bad"][0]
    assert top > at["bad"][1]


def test_without_utility_the_strengths_stand_side_by_side() -> None:
    tried = [Trial(str(n), 50.0 - n, None, refused=False) for n in range(3)]
    before = Trial("before", 90.0, None, refused=True)
    drawing = frontier(Frontier(tried, before, max_harmful_score=10.0, min_utility=90.0))
    check(drawing)
    at = places(drawing)
    assert at["0"][0] < at["1"][0] < at["2"][0]
    assert "utility" not in str(drawing)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100), st.none() | st.floats(0, 1))
def test_sparsity(fractions: list[float], overall: float | None) -> None:
    root = check(sparsity([Layer(str(n), each) for n, each in enumerate(fractions)], overall=overall))
    heights = [float(rect.get("height") or "") for rect in root.iter(f"{NAMESPACE}rect")]
    assert len(heights) == len(fractions)
    by_fraction = sorted(zip(fractions, heights, strict=True))
    assert all(b[1] >= a[1] - 0.011 for a, b in pairwise(by_fraction))
    assert all(0 <= height <= 130.01 for height in heights)


@given(st.floats(0, 100), st.floats(0, 100), st.integers(3, 8))
def test_ticks_are_round_and_enclose(one: float, other: float, most: int) -> None:
    low, high = sorted((one, other))
    marks = svg.ticks(low, high, most=most)
    assert marks[0] <= low + 1e-6
    assert marks[-1] >= high - 1e-6
    assert 2 <= len(marks) <= most + 2


def test_text_is_escaped() -> None:
    drawn = svg.element("text", "<b>&", Markup("<i/>"), fill='"><x')
    assert drawn == '<text fill="&#34;&gt;&lt;x">&lt;b&gt;&amp;<i/></text>'
