from __future__ import annotations

import pytest

from service.dashboard.csv_cells import lines, safe


@pytest.mark.parametrize(
    "value",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\N{FULLWIDTH EQUALS SIGN}1", "|x", "%0A"],
)
def test_a_spreadsheet_would_run_it(value: str) -> None:
    assert safe(value) == f"'{value}"


@pytest.mark.parametrize("value", ["key_x", "2026-11-21", "a=b", "", "{}"])
def test_plain_text_stays(value: str) -> None:
    assert safe(value) == value


def test_cells_cannot_end_early() -> None:
    assert list(lines([('a","=1', None, 3)])) == ['"a"",""=1","","3"\r\n']
