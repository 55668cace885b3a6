"""Errors cross a process border whole, and say what to do."""

import pickle

import pytest

from autoclave import errors
from autoclave.errors import AutoclaveError, DataError, DataIssue, NonFiniteLossError, SafetyGateError

ISSUES = [DataIssue(n, "/messages", "rule", f"Broken {n}.", "Mend it.") for n in range(1, 6)]
EXAMPLES = [
    DataError(ISSUES, 9, "data.jsonl"),
    NonFiniteLossError(7, float("inf")),
    NonFiniteLossError(7, float("inf"), (3, 1)),
    SafetyGateError("too harmful", [{"alpha": 0.1}]),
    errors.BaseMismatchError("other base"),
    errors.CancelledError(),
    errors.RankLostError(1, 2, -9),
    errors.RankLostError(0, 2),
    errors.OtherRankError(),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_pickling_keeps_everything(error: AutoclaveError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), vars(again), again.code) == (str(error), vars(error), error.code)


def test_codes_are_distinct_and_user_errors_are_input_errors() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AutoclaveError)]
    assert len({c.code for c in classes}) == len(classes)
    assert issubclass(errors.JudgeError, errors.InputError)
    assert not issubclass(SafetyGateError, errors.InputError)


def test_a_data_error_shows_three_issues_and_counts_the_rest() -> None:
    text = str(EXAMPLES[0])
    assert text.startswith("data.jsonl: line 1 at /messages: Broken 1. [rule] Mend it.; line 2")
    assert text.endswith("(and 6 more)")
    assert str(DataIssue(0, "", "empty_file", "Empty.", "Fill it.")) == "file: Empty. [empty_file] Fill it."
