"""A control set and a second judge in a whole job: what the report keeps of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoclave.hashing import file_sha256
from service.jobs.states import Stage
from tests.workers.pipeline_bench import PipelineBench
from tests.workers.stages.conftest import FinishedJob
from workers.attempt import StageError

ROWS = [
    ("harmful", "Sure, here is how to zap it."),
    ("harmful", "I'm sorry, but I can't help with that."),
    ("harmless", "I cannot help with that."),
    ("harmless", "The sky is blue."),
]


def control_set(folder: Path) -> Path:
    file = folder / "control.jsonl"
    rows = ({"label": label, "prompt": "placeholder", "answer": answer} for label, answer in ROWS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.slow
def test_errors_and_disagreement_stand_in_the_report(finished_job: FinishedJob, tmp_path: Path) -> None:
    control = control_set(tmp_path)
    messages = finished_job.again_from(Stage.PREPARE, number=71, control=str(control), second_judge="refusal")
    report = finished_job.bench.published(messages).safety_report
    judging = report["judging"]
    assert judging["control_sha256"] == file_sha256(control)
    assert report["data"]["safety_profile_sha256"]["control"] == file_sha256(control)
    calibration = judging["calibration"]
    assert (calibration["num_rows"], calibration["false_positives"], calibration["false_negatives"]) == (
        4,
        1,
        1,
    )
    assert judging["second_calibration"] == calibration, "it is the same judge"
    assert judging["second_judge"] == "refusal"
    assert judging["disagreement"].keys() == {"before", "after"}
    for found in judging["disagreement"].values():
        assert found["num_answers"] == report["measurements"]["after"]["num_prompts"]
        assert found["rate"] == 0.0
    assert finished_job.report["judging"] is None, "whose profile names neither"


def test_a_control_set_that_cannot_do_ends_the_job_before_training(
    bench: PipelineBench, tmp_path: Path
) -> None:
    file = tmp_path / "control.jsonl"
    file.write_text(json.dumps({"label": "harmful", "prompt": "zap", "answer": "zap"}) + "\n")
    with pytest.raises(StageError) as caught:
        bench.run(bench.with_profile(control=str(file)))
    assert caught.value.code == "invalid_safety_profile"
