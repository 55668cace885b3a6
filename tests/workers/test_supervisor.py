"""Every way an attempt can end, with real processes: what the job says then, and that nobody is left."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest

from service import outbox
from service.jobs import attempts, lease
from service.models import Adapter, AdapterFile, JobCheckpoint
from service.storage import file_key
from tests.workers.conftest import Bench, QueuedJob


def gone(pids: list[int]) -> bool:
    """No such process, or a zombie that nobody in this container reaps."""
    return all(
        not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE for pid in pids
    )


def texts(bench: Bench, job_id: str) -> list[str]:
    return [event.message for event in bench.events(job_id)]


def test_a_job_that_succeeds(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    job = bench.run("happy", job_id)

    assert (job.status, job.stage, job.attempt_count) == ("succeeded", "publish", 1)
    assert job.safety_report == {"alpha": 0.1}
    assert job.trained_tokens == 1234
    assert job.lease_owner is None
    assert job.progress is None
    with bench.database.snapshot() as session:
        adapter = session.query(Adapter).filter_by(job_id=job_id).one()
    assert b"".join(bench.storage.stream(adapter.storage_key)) == b"tar"
    assert bench.storage.keys(f"private/{job_id}") == []
    assert list(bench.work_dir.iterdir()) == []

    assert set(job.stage_seconds or {}) == {"prepare", "train", "sanitize", "evaluate", "publish"}
    curve, report, page = job.result_file_ids or []
    assert b"".join(bench.storage.stream(file_key(curve))).decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,learning_rate,tokens_per_second",
        "1,0.5,,,,1.0,9.0",
        "2,0.25,,,,0.5,",
    ]
    assert json.loads(b"".join(bench.storage.stream(file_key(report)))) == job.safety_report
    assert f"Safety report of {job_id}" in b"".join(bench.storage.stream(file_key(page))).decode()

    events = bench.events(job_id)
    assert [e.data for e in events if e.type == "metrics"] == [
        {"step": 1, "total_steps": 2, "train_loss": 0.5}
    ]
    assert "Reading 12 conversations" in texts(bench, job_id)
    assert texts(bench, job_id)[-1] == "The job has successfully completed"


def test_checkpoints_outlive_their_job(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job(model_id="ft:x")
    job = bench.run("keeps_checkpoints", job_id)
    assert (job.status, job.error_code) == ("failed", "safety_gate_failed")
    with bench.database.snapshot() as session:
        rows = session.query(JobCheckpoint).order_by(JobCheckpoint.step_number).all()
    assert [(row.step_number, row.model_id) for row in rows] == [
        (step, f"ft:x:ckpt-step-{step}") for step in (4, 6, 8)
    ]
    assert bench.storage.keys("private") == [
        f"private/{job_id}/1/train-kept-{step}/adapter_model.safetensors" for step in (4, 6, 8)
    ]
    created = [text for text in texts(bench, job_id) if text.startswith("Checkpoint")]
    assert created == [f"Checkpoint created at step {step}" for step in (2, 4, 6, 8)]


def test_a_second_doorbell_is_ignored(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    bench.run("happy", job_id)
    job = bench.run("crashes", job_id)
    assert (job.status, job.attempt_count) == ("succeeded", 1)


def test_a_broken_line_is_skipped(bench: Bench, queued_job: QueuedJob) -> None:
    assert bench.run("garbage", queued_job()).status == "succeeded"


def test_a_refusal_fails_at_once_and_keeps_its_report(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    job = bench.run("refuses", job_id)
    assert (job.status, job.stage, job.error_code) == ("failed", "sanitize", "safety_gate_failed")
    assert job.attempt_count == 1
    assert job.safety_report == {"alpha": None}
    assert bench.storage.keys("private") == []


@pytest.mark.parametrize(
    ("behaviour", "code", "stage"),
    [
        ("crashes", "internal_error", "train"),
        ("is_killed", "worker_lost", "sanitize"),
        ("judge_is_away", "judge_unavailable", "sanitize"),
    ],
)
def test_a_child_that_dies_is_tried_again_and_then_fails(
    bench: Bench, queued_job: QueuedJob, behaviour: str, code: str, stage: str
) -> None:
    job_id = queued_job()
    job = bench.run(behaviour, job_id)
    assert (job.status, job.stage, job.attempt_count) == ("queued", stage, 1)
    assert job.stage_outputs["prepare"] == {"by": 1}
    with bench.database.snapshot() as session:
        assert [m.job_id for m in outbox.pending(session)] == [job_id, job_id]
    assert bench.storage.keys(f"private/{job_id}"), "a resuming attempt needs what was finished"

    job = bench.run(behaviour, job_id)
    assert (job.status, job.stage, job.error_code) == ("failed", stage, code)
    assert "attempts" in (job.error_message or "")
    if behaviour == "crashes":
        assert job.log_tail == "Traceback: something broke\n"
        assert "something broke" not in (job.error_message or "")
    assert bench.storage.keys("private") == []


def test_a_resumed_job_goes_on_at_its_stage(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    bench.run("crashes", job_id)
    job = bench.run("happy", job_id)
    assert job.status == "succeeded"
    assert job.stage_outputs["prepare"] == {"by": 1}
    assert job.stage_outputs["train"] == {"by": 2, "trained_tokens": 1234}
    assert "Fine-tuning job resumed at stage train" in texts(bench, job_id)
    with bench.database.snapshot() as session:
        second, first = attempts.list_attempts(session, job_id)
    assert (first.exit_reason, first.exit_code, first.last_stage) == ("died", 1, "train")
    assert first.log_tail == "Traceback: something broke\n"
    assert (second.exit_reason, second.first_stage, second.last_stage) == ("published", "train", "publish")


def test_out_of_memory_is_tried_once_more_with_less(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    job = bench.run("needs_memory", job_id)
    assert (job.status, job.attempt_count) == ("succeeded", 1)
    assert "Out of memory: trying again with half the tokens at once" in texts(bench, job_id)


def test_out_of_memory_twice_fails(bench: Bench, queued_job: QueuedJob) -> None:
    job = bench.run("needs_too_much_memory", queued_job())
    assert (job.status, job.error_code, job.attempt_count) == ("failed", "out_of_memory", 1)


def test_a_checkpoint_that_a_newer_one_replaced_is_deleted(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("saves_two_checkpoints", job_id)
    bench.wait_until(lambda: (bench.job(job_id).checkpoint or {}).get("step") == 2)
    bench.wait_until(lambda: len(bench.storage.keys("private")) == 1)
    assert bench.storage.keys("private") == [f"private/{job_id}/1/train-checkpoint-2/state.json"]
    bench.shutdown.set()
    thread.join(10)


def test_a_stage_that_takes_too_long_fails(bench: Bench, queued_job: QueuedJob) -> None:
    job = bench.run("stubborn", queued_job(), stage_deadline_seconds=4.0)
    assert (job.status, job.error_code) == ("failed", "deadline_exceeded")
    assert gone(bench.pids())


def test_a_lost_lease_kills_the_child_and_writes_nothing(bench: Bench, queued_job: QueuedJob) -> None:
    job_id = queued_job()
    thread = bench.run_beside("stubborn", job_id)
    with bench.database.transaction() as session:
        lease.reap(session, session.get_one(type(bench.job(job_id)), job_id), max_attempts=2, now=time.time())
    num_events = len(bench.events(job_id))
    thread.join(10)
    assert not thread.is_alive()
    assert gone(bench.pids())
    assert bench.job(job_id).status == "queued"
    assert len(bench.events(job_id)) == num_events


def test_what_an_adapter_is_released_with(bench: Bench, queued_job: QueuedJob) -> None:
    asked = {"adapter_expires_after": {"anchor": "released_at", "seconds": 3600}}
    for request, ttl_seconds, expected in ((None, None, None), (None, 50.0, 50.0), (asked, 50.0, 3600.0)):
        job_id = queued_job(request=request)
        bench.run("happy", job_id, adapter_ttl_seconds=ttl_seconds, signing_key_file=Path("/keys/own.pem"))
        with bench.database.snapshot() as session:
            adapter = session.query(Adapter).filter_by(job_id=job_id).one()
            (file,) = session.query(AdapterFile).filter_by(model_id=adapter.model_id)
        assert adapter.expires_at == (None if expected is None else adapter.created_at + expected)
        assert adapter.signing_public_key == "/keys/own.pem"
        assert (file.name, file.bytes, file.sha256, file.offset) == ("README.md", 2, "1" * 64, 1)


def test_a_straggler_in_the_group_is_ended(bench: Bench, queued_job: QueuedJob) -> None:
    assert bench.run("leaves_a_straggler", queued_job()).status == "succeeded"
    assert gone(bench.pids())


def test_a_child_that_does_not_exit_after_its_verdict(bench: Bench, queued_job: QueuedJob) -> None:
    assert bench.run("hangs_after_publishing", queued_job()).status == "succeeded"


def test_a_child_sees_no_password(
    bench: Bench, queued_job: QueuedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://autoclave:hunter2@db/autoclave")
    monkeypatch.setenv("BROKER_URL", "redis://:hunter2@broker/0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    job_id = queued_job()
    thread = bench.run_beside("cooperates", job_id)
    child = psutil.Process(bench.pids()[0])
    environment = child.environ()
    order = next(bench.work_dir.glob("*/order.json")).read_text()
    bench.change(job_id, cancel_requested_at=time.time())
    thread.join(10)
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert "hunter2" not in " ".join(environment.values()) + order
    assert bench.settings.database_url not in order
    tokens = json.loads(order)["token_cache"]
    assert tokens == {"folder": str(bench.work_dir / "tokens"), "max_bytes": 2**31}
