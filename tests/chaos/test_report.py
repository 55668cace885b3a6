"""What a run says of itself: what was injected and what was not, what is wrong, and what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chaos import report
from chaos.__main__ import arguments
from chaos.audit import audit
from chaos.faults import Done
from chaos.schedule import Fault
from tests.chaos.end_states import healthy

_RUN = {
    "command": "python -m chaos",
    "date": "today",
    "minutes": 1.0,
    "seed": 1,
    "workers": 2,
    "full_disk": "a small tmpfs (ENOSPC)",
}


def _done(number: int, kind: str, stage: str, *, hit: bool, **figures: float) -> Done:
    fault = Fault(number, kind, stage, 0.0, 0, 0)
    return Done(fault, hit=hit, what="as it was", at=0.0, figures=figures)


@pytest.fixture
def result() -> dict:
    state = healthy()
    state.processes.append("4711 python -m workers.runner")
    done = [
        _done(0, "kill worker", "train", hit=True, seconds_until_resumed=9.0),
        _done(1, "kill worker", "train", hit=True, seconds_until_resumed=5.0),
        _done(2, "kill worker", "publish", hit=False),
    ]
    plan = [each.fault for each in done] + [Fault(3, "kill api", "", 0.0, 0, 0)]
    return report.result(run=_RUN, settings={}, state=state, violations=audit(state), plan=plan, done=done)


def test_what_was_injected_is_counted(result: dict) -> None:
    assert result["faults"]["kill worker"] == {"planned": 3, "injected": 2}
    assert result["faults"]["kill api"] == {"planned": 1, "injected": 0}
    assert result["faults_by_stage"] == {"kill worker": {"train": 2}}
    assert result["seconds"]["kill worker: seconds until resumed"] == {
        "times": 2,
        "median": 7.0,
        "largest": 9.0,
    }
    assert result["jobs"]["ended"] == {"succeeded": 1, "failed": 1, "cancelled": 1}
    assert result["jobs"]["error_codes"] == {"safety_gate_failed": 1}


def test_both_files_say_what_is_wrong(result: dict, tmp_path: Path) -> None:
    report.write(result, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "chaos.json").read_text()) == result
    page = (tmp_path / "new" / "chaos.md").read_text()
    assert "**1 violations.**" in page
    assert "still runs: 4711" in page
    assert "| kill worker | 3 | 2 | train 2 |" in page


def test_the_command_line_has_bounds_by_default() -> None:
    options = arguments([])
    assert (options.jobs, options.minutes) == (200, 60.0)
    assert options.out == Path("benchmarks/results")
