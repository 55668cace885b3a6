"""A judge behind an endpoint fails in the middle: the next attempt goes on, and answers nothing twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autoclave.errors import JudgeAwayError
from autoclave.generation.static_batches import StaticBatches
from service.jobs.error_kinds import KINDS
from service.jobs.states import Stage
from service.storage import private_prefix
from tests.autoclave.evaluation.judges.test_moderations import reply
from tests.receiver import running_receiver
from tests.workers.pipeline_bench import PipelineBench
from tests.workers.stages.conftest import FinishedJob
from workers import runner
from workers.endings import Died, ending_of
from workers.order import JUDGE_AWAY_EXIT, Order, write_order
from workers.reporter import Reporter


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many prompts the model in this process was asked, call by call."""
    counts: list[int] = []
    answer = StaticBatches.answer

    def counted(self: StaticBatches, prompts: Any, **named: Any) -> Any:
        counts.append(len(prompts))
        return answer(self, prompts, **named)

    monkeypatch.setattr(StaticBatches, "answer", counted)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return counts


def order_with(job: FinishedJob, url: str, *, number: int) -> Order:
    judge = f"moderations:{url}#max_attempts=1&timeout_seconds=5"
    order = job.bench.resumed(
        job.bench.order,
        job.messages,
        Stage.SANITIZE,
        safety_profile=job.bench.with_profile(judge=judge).safety_profile,
        fencing_number=number,
        scratch=str(job.bench.folder / f"away-{number}"),
    )
    return msgspec.structs.replace(order, job_id="ftjob-away")


def test_answers_are_kept_until_the_judge_is_back(finished_job: FinishedJob, asked: list[int]) -> None:
    bench = finished_job.bench
    with running_receiver() as receiver:

        def answer_some(handler: Any, most: int) -> None:
            texts = json.loads(receiver.received[-1].body)["input"]
            if len(receiver.received) > most:
                reply(handler, {}, status=503)
            else:
                reply(handler, {"results": [{"flagged": False, "categories": {}} for _ in texts]})

        receiver.answer = lambda handler: answer_some(handler, 1)
        first = order_with(finished_job, receiver.url, number=81)
        with pytest.raises(JudgeAwayError, match="status 503 after 1 attempt"):
            bench.run(first)
        before = list(asked)
        assert len(before) >= 3, "before and one strength were answered"
        kept = finished_job.storage.keys(f"{private_prefix('ftjob-away')}/answers")
        assert len(kept) == len(before)

        asked.clear()
        receiver.answer = lambda handler: answer_some(handler, 10_000)
        messages = bench.run(order_with(finished_job, receiver.url, number=82))
        report = bench.published(messages).safety_report
        assert report["measurements"]["after"]["harmful_score"] == 0.0
        assert report["answers_from"] == "static-batches"

        through_once = list(asked)
        asked.clear()
        again = bench.run(order_with(finished_job, receiver.url, number=83))
        assert asked == [], "all of it is known now"
        repeated = bench.published(again).safety_report
        assert repeated["measurements"] == report["measurements"]
        assert len(before) + len(through_once) == len(
            finished_job.storage.keys(f"{private_prefix('ftjob-away')}/answers")
        )
    finished_job.storage.delete_prefix(private_prefix("ftjob-away"))


def test_the_attempt_counts_and_its_end_is_named(
    bench: PipelineBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge_is_away(_: Any) -> None:
        raise JudgeAwayError("the moderation endpoint 127.0.0.1 gave no verdict")

    monkeypatch.setattr(runner, "run_pipeline", judge_is_away)
    Path(bench.order.scratch).mkdir()
    write_order(bench.order, tmp_path / "order.json")
    reading, writing = os.pipe()
    reporter = Reporter(writing, bench.order.stop_flag)
    monkeypatch.setattr(runner, "Reporter", lambda *_: reporter)
    code = runner.main(tmp_path / "order.json", writing)
    reporter.close()
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"", "no verdict: the job goes on"
    ending = ending_of(exit_code=code, verdict=None, stop_reason=None)
    assert ending == Died(JUDGE_AWAY_EXIT)
    assert ending.code == "judge_unavailable"
    assert KINDS[ending.code] == "system"
    assert JudgeAwayError.code == ending.code
