"""How often open pages ask, from nothing but their own questions."""

from __future__ import annotations

import heapq

from hypothesis import given, settings
from hypothesis import strategies as st

from service.pace import MAX_SECONDS, MIN_SECONDS, POLLS_PER_SECOND, Pace


def _open(num_pages: int, *, seconds: float) -> tuple[list[float], list[int]]:
    """Pages that come one every 50 ms and do as they are told: when they asked, what each waits at last."""
    pace = Pace()
    due = [(0.05 * number, number, MIN_SECONDS) for number in range(num_pages)]
    heapq.heapify(due)
    asked, waits = [], [MIN_SECONDS] * num_pages
    while due[0][0] < seconds:
        now, number, waited = heapq.heappop(due)
        waits[number] = pace.asked(waited, now=now)
        asked.append(now)
        heapq.heappush(due, (now + waits[number], number, waits[number]))
    return asked, waits


def test_one_page_asks_often() -> None:
    assert _open(1, seconds=300)[1] == [MIN_SECONDS]


@settings(max_examples=20, deadline=None)
@given(st.integers(100, 440))
def test_many_pages_together_keep_to_the_budget(num_pages: int) -> None:
    asked, waits = _open(num_pages, seconds=300)
    settled = [now for now in asked if now >= 150]
    assert 0.75 < len(settled) / 150 / POLLS_PER_SECOND < 1.25
    assert max(waits) - min(waits) <= 8, "no page waits much longer than another"


def test_no_page_waits_for_ever() -> None:
    assert set(_open(3000, seconds=400)[1]) == {MAX_SECONDS}


def test_pages_that_were_closed_are_forgotten() -> None:
    pace = Pace()
    for number in range(1000):
        pace.asked(MAX_SECONDS, now=number / 100)
    assert pace.asked(MAX_SECONDS, now=11.0) == MAX_SECONDS
    assert pace.asked(MAX_SECONDS, now=60.0) == MIN_SECONDS


def test_a_page_cannot_say_that_it_waits_for_ever() -> None:
    pace = Pace()
    assert pace.asked(10**9, now=0.0) == MIN_SECONDS
    assert pace.asked(-(10**9), now=0.0) == MIN_SECONDS
