from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dashboard import words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, words.NOTHING),
        (-1.0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (725, "12 min 5 s"),
        (3600, "1 h"),
        (12_000, "3 h 20 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e9))
def test_every_duration_has_words(seconds: float) -> None:
    assert words.duration(seconds)


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, words.NOTHING), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB")],
)
def test_bytes(count: float | None, text: str) -> None:
    assert words.num_bytes(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, words.NOTHING), (1234567, "1,234,567"), (2.0, "2"), (0.00012345, "0.0001234"), (1234.5, "1,234")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_moments_are_machine_readable_too() -> None:
    html = words.when(0.0)
    assert 'datetime="1970-01-01T00:00:00.000+00:00"' in html
    assert "1970-01-01 00:00:00 UTC" in html
    assert words.when(None) == words.NOTHING


def test_a_long_identifier_is_cut() -> None:
    assert words.short("ftjob-abcdefghijklmnop") == "ftjob-abcdefg\N{HORIZONTAL ELLIPSIS}"
    assert words.short("short") == "short"
