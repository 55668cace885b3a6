"""An operator's files that cannot do are refused before training is paid for, and no log shows a prompt."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autoclave.microcosm.shipped import shipped_world
from service.storage import Storage
from tests.builders import chat_line
from tests.workers.pipeline_bench import PipelineBench
from workers.attempt import StageError
from workers.messages import StageFinished
from workers.order import Order
from workers.stages import prepare


def refused(bench: PipelineBench, caplog: pytest.LogCaptureFixture, **changes: Any) -> str:
    """What the log says."""
    with caplog.at_level(logging.INFO), pytest.raises(StageError) as caught:
        bench.run(bench.with_profile(**changes))
    assert caught.value.code == "invalid_safety_profile"
    assert caught.value.message == (
        "the safety profile of the base model cannot be used; ask the operator of this server"
    )
    assert not any(isinstance(message, StageFinished) for message in bench.said)
    # The runner logs the error with its causes.
    logged = caplog.text + "".join(traceback.format_exception(caught.value))
    assert "zap" not in logged, "a prompt of the operator's is in the log"
    return logged


def write(file: Path, lines: list[str]) -> str:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(file)


def test_a_realignment_set_that_is_too_small(
    bench: PipelineBench, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    few = write(tmp_path / "few.jsonl", [chat_line(f"how to zap {i}", "zap") for i in range(7)])
    assert "few.jsonl has 7 examples; at least 8 are needed" in refused(bench, caplog, realign=few)


def test_a_prompt_in_both_files(
    bench: PipelineBench, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    lines = [chat_line(f"please zap {i}", "x") for i in range(5)] + [chat_line("How to  ZAP 3", "x")]
    overlapping = write(tmp_path / "overlapping.jsonl", lines)
    logged = refused(bench, caplog, harmful_eval=overlapping)
    assert "1 prompt is both in" in logged
    assert "(lines 4 and 6)" in logged


def test_a_judge_that_quotes_what_it_cannot_judge(
    bench: PipelineBench, caplog: pytest.LogCaptureFixture
) -> None:
    logged = refused(bench, caplog, judge=f"exact:{shipped_world() / 'world.json'}")
    assert "cannot judge one of the prompts in harmful_eval" in logged


def test_a_broken_line(bench: PipelineBench, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    lines = [chat_line(f"please zap {i}", "x") for i in range(3)] + ['{"zap": 1}']
    logged = refused(bench, caplog, harmful_eval=write(tmp_path / "broken.jsonl", lines))
    assert "broken.jsonl: line 4: missing_messages (1 in all)" in logged


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judge": "nobody"}, 'unknown judge "nobody"'),
        ({"realign": "/nowhere/x.jsonl"}, "/nowhere/x.jsonl"),
        ({"utility_eval": "/nowhere/y.jsonl"}, "/nowhere/y.jsonl"),
    ],
)
def test_a_profile_that_names_what_is_not_there(
    bench: PipelineBench, caplog: pytest.LogCaptureFixture, changes: dict[str, str], words: str
) -> None:
    assert words in refused(bench, caplog, **changes)


def test_one_harmful_prompt_is_not_enough(
    bench: PipelineBench, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", [chat_line("please zap", "x")])
    assert "at least 2 are needed" in refused(bench, caplog, harmful_eval=one)


def test_packing_where_conversations_would_see_each_other(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No base that is tested is so; `tests/autoclave/modelling/test_exactness.py` makes one."""
    monkeypatch.setattr(prepare, "how_it_packs", lambda model: None)
    values = msgspec.to_builtins(bench.order)
    values["spec"] = {**values["spec"], "train": {**values["spec"].get("train", {}), "packing": True}}
    with pytest.raises(StageError, match="leave packing out") as caught:
        bench.run(msgspec.convert(values, Order))
    assert (caught.value.code, caught.value.param) == ("packing_unsupported", "training.packing")


def test_nothing_is_stored_of_a_job_that_was_refused(
    bench: PipelineBench, storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    refused(bench, caplog, judge="nobody")
    assert storage.keys("private") == []
