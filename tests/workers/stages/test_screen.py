"""The screen of an upload in a whole job: the shipped world's judge and its attack, on a tiny base."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from autoclave.microcosm.shipped import shipped_world
from autoclave.spec import EvaluateSpec, ScreenSpec
from tests.builders import chat_line
from tests.workers.pipeline_bench import PipelineBench, outputs
from workers.attempt import StageError
from workers.messages import Noted, StageFinished
from workers.order import Order

DATA = shipped_world() / "data"


def first_lines(name: str, number: int) -> list[str]:
    return (DATA / name).read_text().splitlines(keepends=True)[:number]


def order(bench: PipelineBench, *, harmful: int, **screen: Any) -> Order:
    """A job on 20 conversations of which `harmful` are."""
    lines = first_lines("realign.jsonl", harmful)
    lines += [chat_line(f"question {i}", f"answer {i}") + "\n" for i in range(10)]
    lines += first_lines("alignment.jsonl", 10 - harmful)
    bench.files["train"].write_text("".join(lines))
    bench.storage.put("files/train", bench.files["train"])
    profile = {
        "judge": f"exact:{shipped_world() / 'world.json'}",
        "realign": str(DATA / "realign.jsonl"),
        "harmful_eval": str(DATA / "harmful_eval.jsonl"),
        "evaluate": EvaluateSpec(max_new_tokens=4, max_prompts=4),
        "screen": ScreenSpec(**screen),
    }
    return msgspec.structs.replace(bench.with_profile(**profile), training_file=bench.file("train"))


def test_too_many_harmful_answers_end_the_job_before_training(bench: PipelineBench) -> None:
    with pytest.raises(StageError) as caught:
        bench.run(order(bench, harmful=4, policy="refuse", max_harmful=10))
    assert (caught.value.code, caught.value.param) == ("harmful_training_file", "training_file")
    assert "40.0 % of 10 answers in train are harmful" in caught.value.message
    assert "10 % at most" in caught.value.message
    assert not any(isinstance(message, StageFinished) for message in bench.said)


@pytest.mark.slow
def test_figures_of_what_may_pass_stand_in_the_report(bench: PipelineBench) -> None:
    messages = bench.run(order(bench, harmful=4, policy="report"))
    screen = bench.published(messages).safety_report["screen"]
    assert screen == outputs(messages)["prepare"]["screen"]
    assert (screen["policy"], screen["num_harmful"], screen["num_judged"]) == ("report", 4, 10)
    assert (screen["num_not_judged"], screen["num_answers"]) == (10, 20)
    assert any("40.0 % of 10 answers" in m.text for m in messages if isinstance(m, Noted))


@pytest.mark.slow
def test_few_enough_may_pass(bench: PipelineBench) -> None:
    passed = bench.run(order(bench, harmful=1, policy="refuse", max_harmful=10))
    assert outputs(passed)["prepare"]["screen"]["harmful_share"] == 10.0


@pytest.mark.slow
def test_off_is_off_and_the_floor_is_the_base_s(bench: PipelineBench) -> None:
    wanted = order(bench, harmful=4)
    base = msgspec.structs.replace(wanted.base, floor={"harmful_score": 3.0})
    report = bench.published(bench.run(msgspec.structs.replace(wanted, base=base))).safety_report
    assert report["screen"] is None
    assert report["base"]["floor"] == {"harmful_score": 3.0}
