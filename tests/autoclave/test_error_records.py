"""What one process raises, another raises again; what is not ours arrives as words, and runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoclave import errors
from autoclave.error_records import decode, encode
from autoclave.errors import AutoclaveError, DataError, DataIssue, NonFiniteLossError, SafetyGateError

ISSUES = [DataIssue(n, "/messages", "rule", f"Broken {n}.", "Mend it.") for n in range(1, 6)]
EXAMPLES: list[AutoclaveError] = [
    AutoclaveError("it broke"),
    DataError(ISSUES, 9, "data.jsonl"),
    NonFiniteLossError(7, float("inf")),
    NonFiniteLossError(7, float("inf"), (3, 1)),
    SafetyGateError("too harmful", [{"alpha": 0.1, "harmful": None}]),
    errors.OutOfMemoryError(3, 17, "By estimate it needs 2 GB."),
    errors.OverlapError("they share some", [(1, 2), (3, 4)]),
    errors.InputError("no \ud800 text"),
    errors.RealignmentError("nothing to learn"),
    errors.ModelError("no weights"),
    errors.BaseMismatchError("other base"),
    errors.NonFiniteWeightsError("a NaN"),
    errors.UnsupportedAdapterError("no LoRA"),
    errors.JudgeError("no verdict"),
    errors.JudgeAwayError("no answer yet"),
    errors.EndpointError("no answer"),
    errors.CancelledError(),
    errors.RankLostError(1, 2, -9),
    errors.RankLostError(0, 2),
    errors.OtherRankError(),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_our_own_arrive_whole(error: AutoclaveError) -> None:
    again = decode(encode(error))
    assert type(again) is type(error)
    assert isinstance(again, AutoclaveError)
    assert (str(again), vars(again), again.code) == (str(error), vars(error), error.code)


def test_every_class_of_ours_is_among_the_examples() -> None:
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, AutoclaveError)}
    assert {type(error) for error in EXAMPLES} == classes


def test_a_file_that_is_not_there_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none").read_text()
    again = decode(encode(caught.value))
    assert isinstance(again, FileNotFoundError)
    assert (again.filename, str(again)) == (str(tmp_path / "none"), str(caught.value))


class _OutsideError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("a"), "KeyError: 'a'"),
        (_OutsideError("broken", 3), "_OutsideError: ('broken', 3)"),
        (errors.ModelError(Path("x")), "ModelError: x"),  # which JSON cannot say
    ],
)
def test_of_others_the_words_arrive(error: Exception, text: str) -> None:
    again = decode(encode(error))
    assert (type(again), str(again)) == (RuntimeError, text)


def test_the_reader_may_know_more() -> None:
    again = decode(encode(_OutsideError("broken", 3)), [_OutsideError])
    assert (type(again), again.args) == (_OutsideError, ("broken", 3))


@pytest.mark.parametrize(
    "name", ["os.system", "builtins.SystemExit", "builtins.exec", "autoclave.errors.Any"]
)
def test_a_name_outside_the_table_is_not_looked_up(name: str) -> None:
    record: dict[str, Any] = {"class": name, "arguments": ["exit 3"], "text": "harmless"}
    again = decode(json.dumps(record))
    assert (type(again), str(again)) == (RuntimeError, "harmless")
