"""Errors have codes of their own, and say what to do."""

from __future__ import annotations

from autoclave import errors
from autoclave.errors import AutoclaveError, DataError, DataIssue, SafetyGateError

ISSUES = [DataIssue(n, "/messages", "rule", f"Broken {n}.", "Mend it.") for n in range(1, 6)]


def test_codes_are_distinct_and_user_errors_are_input_errors() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AutoclaveError)]
    assert len({c.code for c in classes}) == len(classes)
    assert issubclass(errors.JudgeError, errors.InputError)
    assert not issubclass(SafetyGateError, errors.InputError)


def test_a_data_error_shows_three_issues_and_counts_the_rest() -> None:
    text = str(DataError(ISSUES, 9, "data.jsonl"))
    assert text.startswith("data.jsonl: line 1 at /messages: Broken 1. [rule] Mend it.; line 2")
    assert text.endswith("(and 6 more)")
    assert str(DataIssue(0, "", "empty_file", "Empty.", "Fill it.")) == "file: Empty. [empty_file] Fill it."
