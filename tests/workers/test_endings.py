"""The precedence of endings, and when a stop turns from asking to killing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.endings import (
    Cancelled,
    DeadlineExceeded,
    Died,
    Drained,
    Ending,
    Finished,
    OutOfMemory,
    Paused,
    StopReason,
    StorageDown,
    ending_of,
    exit_of,
)
from workers.escalation import Escalation, Step
from workers.messages import Failed, Published

VERDICT = Failed(code="x", message="x")


@pytest.mark.parametrize("exit_code", [0, 1, 42, 43, -9, -15])
def test_what_outranks_the_exit_code(exit_code: int) -> None:
    def ending(verdict: Failed | None, reason: StopReason | None) -> Ending:
        return ending_of(exit_code=exit_code, verdict=verdict, stop_reason=reason)

    assert ending(None, StopReason.CANCEL) == Cancelled()
    assert ending(VERDICT, StopReason.CANCEL) == Cancelled()
    assert ending(VERDICT, None) == Finished(VERDICT)
    assert ending(VERDICT, StopReason.VERDICT) == Finished(VERDICT)
    assert ending(VERDICT, StopReason.DEADLINE) == Finished(VERDICT)
    assert ending(VERDICT, StopReason.DRAIN) == Finished(VERDICT)
    assert ending(VERDICT, StopReason.PAUSE) == Finished(VERDICT)
    assert ending(None, StopReason.PAUSE) == Paused()
    assert ending(None, StopReason.DEADLINE) == DeadlineExceeded()
    assert ending(None, StopReason.DRAIN) == Drained()


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [(42, OutOfMemory()), (43, StorageDown()), (0, Died(0)), (1, Died(1)), (-9, Died(-9))],
)
def test_the_exit_code_alone(exit_code: int, expected: Ending) -> None:
    assert ending_of(exit_code=exit_code, verdict=None, stop_reason=None) == expected


@pytest.mark.parametrize(
    ("exit_code", "code", "words"),
    [
        (-9, "worker_lost", "out of memory"),
        (-11, "worker_lost", "SIGSEGV"),
        (44, "worker_lost", "trained it together"),
        (45, "judge_unavailable", "judge"),
        (3, "internal_error", "internal"),
    ],
)
def test_a_death_is_named(exit_code: int, code: str, words: str) -> None:
    died = Died(exit_code)
    assert died.code == code
    assert words in str(died)


@given(
    flag=st.floats(0, 100),
    terminate=st.floats(0.01, 100),
    times=st.lists(st.floats(0, 300), max_size=30).map(sorted),
)
def test_each_step_comes_once_in_order_and_never_early(
    flag: float, terminate: float, times: list[float]
) -> None:
    escalation = Escalation(1000.0, flag, terminate)
    taken = [(now, step) for now in times if (step := escalation.due(1000.0 + now)) is not None]
    assert [step for _, step in taken] == [Step.TERMINATE, Step.KILL][: len(taken)]
    for now, step in taken:
        earliest = flag if step is Step.TERMINATE else flag + terminate
        assert now >= earliest - 1e-9


def test_what_an_attempt_is_remembered_by() -> None:
    published = Published(storage_key="k", num_bytes=1, sha256="s", safety_report={})
    expected = [
        (Finished(published), ("published", None, None)),
        (Finished(Failed(code="invalid_lora", message="no")), ("failed", None, "invalid_lora")),
        (Cancelled(), ("cancelled", None, None)),
        (Paused(), ("paused", None, None)),
        (Drained(), ("drained", None, None)),
        (DeadlineExceeded(), ("deadline", None, None)),
        (OutOfMemory(), ("out_of_memory", 42, "out_of_memory")),
        (Died(-9), ("died", -9, None)),
    ]
    for ending, values in expected:
        assert tuple(exit_of(ending).values()) == values, ending
