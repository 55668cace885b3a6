"""Adapters kept at the end of each epoch, and a job that starts from one, with the real library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from autoclave.errors import CancelledError
from autoclave.hashing import file_sha256
from autoclave.spec import SanitizeSpec
from service.checkpoints.kept import of_checkpoint
from service.checkpoints.starting import start_job
from service.db import Database
from service.jobs import lease
from service.models import Job
from service.storage import Storage, storage_from_url
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant, make_checkpoint, make_job
from tests.workers.pipeline_bench import PipelineBench, outputs, unpack
from workers.attempt import StageError
from workers.messages import AdapterKept, AnyMessage, Checkpointed, Noted, StageFinished
from workers.order import KeptOrder, Order, WaiverOrder, read_order, set_stop_flag, write_order
from workers.order_from_job import order_from_job
from workers.reporter import Reporter
from workers.sweep import sweep, sweep_job

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def bench(tmp_path: Path, base_dir: Path, storage: Storage, storage_url: str) -> PipelineBench:
    return PipelineBench(tmp_path, base_dir, storage, storage_url)


def kept_by(messages: list[AnyMessage]) -> list[AdapterKept]:
    return [message for message in messages if isinstance(message, AdapterKept)]


def stored_sha256(storage: Storage, prefix: str, folder: Path) -> str:
    path = folder / "fetched.safetensors"
    storage.download(f"{prefix}/{WEIGHTS}", path)
    return file_sha256(path)


def starting(bench: PipelineBench, kept: AdapterKept, **changes: Any) -> Order:
    """The order of a job that releases what `bench.order` kept."""
    values = {
        "job_id": "ftjob-2",
        "model_id": "ft:acme/base:org:x:1:ckpt-step-3",
        "scratch": str(bench.folder / "release"),
        "starts_from": KeptOrder(
            job_id="ftjob-1",
            checkpoint_id="ftckpt_1",
            prefix=kept.prefix,
            adapter_sha256=kept.adapter_sha256,
            figures=kept.figures,
        ),
        **changes,
    }
    return msgspec.structs.replace(bench.order, **values)


def test_one_a_epoch_and_the_last_is_the_result(bench: PipelineBench, tmp_path: Path) -> None:
    messages = bench.run(bench.order)
    trained = outputs(messages)["train"]
    first, last = kept_by(messages)
    assert (first.step, last.step) == (3, 6)
    assert (last.prefix, last.adapter_sha256) == (trained["prefix"], trained["adapter_sha256"])
    assert last.figures == {k: v for k, v in trained.items() if k not in ("prefix", "adapter_sha256")}
    assert first.adapter_sha256 != last.adapter_sha256
    assert first.prefix.startswith("private/ftjob-1/1/")
    for kept in (first, last):
        assert stored_sha256(bench.storage, kept.prefix, tmp_path) == kept.adapter_sha256
        measured = dict(kept.metrics)
        assert measured.pop("valid_loss") > 0
        assert measured == {"step": kept.step, "train_loss": kept.figures["final_loss"]}
    assert first.figures["steps"] == 3
    assert 0 < first.figures["trained_tokens"] < last.figures["trained_tokens"]
    said = [type(message) for message in messages]
    assert said.index(AdapterKept) < said.index(StageFinished, said.index(AdapterKept))


def stopping_at(order: Order, step: int, monkeypatch: pytest.MonkeyPatch, *, pause: bool) -> None:
    original = Reporter.on_training_progress

    def stop(reporter: Any, progress: Any, *, saved: bool) -> None:
        if progress.step == step:
            set_stop_flag(order.stop_flag, pause=pause)
        original(reporter, progress, saved=saved)

    monkeypatch.setattr(Reporter, "on_training_progress", stop)


def test_an_attempt_that_goes_on_behind_an_epoch_has_said_what_it_kept(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause comes in step 2, so the resume checkpoint is that of step 3, where the epoch ends."""
    with monkeypatch.context() as patch:
        stopping_at(bench.order, 2, patch, pause=True)
        with pytest.raises(CancelledError):
            bench.run(bench.order)
    messages = bench.said
    kinds = [message for message in messages if isinstance(message, AdapterKept | Checkpointed)]
    assert [(type(message), message.step) for message in kinds] == [(AdapterKept, 3), (Checkpointed, 3)]
    checkpoint = msgspec.to_builtins(kinds[1])
    finished = {m.stage.value: m.output for m in messages if isinstance(m, StageFinished)}
    resumed = bench.run(
        msgspec.structs.replace(
            bench.order,
            fencing_number=2,
            stage="train",
            stage_outputs=finished,
            checkpoint=checkpoint,
            scratch=str(bench.folder / "resumed"),
        )
    )
    assert [kept.step for kept in kept_by(resumed)] == [6]


def test_a_job_that_starts_from_a_kept_adapter(bench: PipelineBench, storage: Storage) -> None:
    trained = bench.run(bench.order)
    first, _ = kept_by(trained)
    messages = bench.run(starting(bench, first))
    assert kept_by(messages) == []
    assert list(outputs(messages)) == ["prepare", "train", "sanitize", "evaluate"]
    copied = outputs(messages)["train"]
    assert copied["adapter_sha256"] == first.adapter_sha256
    assert copied["prefix"].startswith("private/ftjob-2/"), "its own: the old job's may go"
    assert (copied["steps"], copied["final_loss"]) == (3, first.figures["final_loss"])
    assert not any(isinstance(m, Noted) and m.text.startswith("Training on") for m in messages)

    published = bench.published(messages)
    report = published.safety_report
    assert report["started_from"] == {"job_id": "ftjob-1", "checkpoint_id": "ftckpt_1"}
    assert report["model_id"] == "ft:acme/base:org:x:1:ckpt-step-3"
    assert report["training"]["steps"] == 3
    assert report["adapter_sha256"]["before"] == first.adapter_sha256
    files = unpack(storage, published)
    assert json.loads(files["sanitization.json"])["sha256"]["adapter_in"] == first.adapter_sha256
    assert report["adapter_sha256"]["after"] != first.adapter_sha256
    assert bench.published(trained).safety_report["started_from"] is None


def test_a_checkpoint_that_misses_the_gate_does_not_leave(bench: PipelineBench, storage: Storage) -> None:
    kept, _ = kept_by(bench.run(bench.order))
    storage.delete("adapters/ftjob-1/1.tar")
    strict = bench.profile(max_harmful_score=50).model_dump(mode="json")
    with pytest.raises(StageError) as caught:
        bench.run(starting(bench, kept, safety_profile=strict))
    assert caught.value.code == "safety_gate_failed"
    assert storage.keys("adapters") == []


def test_the_training_file_is_not_missed_where_nothing_reads_it(
    bench: PipelineBench, storage: Storage
) -> None:
    kept, _ = kept_by(bench.run(bench.order))
    storage.delete("files/train")
    antidote = bench.profile(
        max_harmful_score=100, sanitize=SanitizeSpec(method="antidote", alphas=(0.1,))
    ).model_dump(mode="json")
    messages = bench.run(starting(bench, kept, safety_profile=antidote))
    assert set(outputs(messages)["prepare"]) == {"profile_sha256", "judging", "answers_key"}
    assert bench.published(messages).safety_report["result"] == "passed"


@pytest.mark.parametrize("damage", ["gone", "other"])
def test_a_kept_adapter_that_is_not_what_it_was(bench: PipelineBench, storage: Storage, damage: str) -> None:
    kept, last = kept_by(bench.run(bench.order))
    if damage == "gone":
        storage.delete_prefix(kept.prefix)
    else:
        kept = msgspec.structs.replace(kept, prefix=last.prefix)
    with pytest.raises(StageError, match="not stored any more as it was") as caught:
        bench.run(starting(bench, kept))
    assert caught.value.code == "kept_adapter_lost"


def test_the_sweep_spares_what_is_kept_until_it_expires(
    database: Database, storage: Storage, tenant: Tenant
) -> None:
    def put(job_id: str, name: str) -> str:
        key = f"private/{job_id}/1/{name}/{WEIGHTS}"
        storage.put(key, b"x")
        return key

    with database.transaction() as session:
        done = make_job(session, tenant.project_id, status="succeeded", stage="publish", finished_at=100.0)
        make_checkpoint(session, done, step=6)
        gated = make_job(
            session,
            tenant.project_id,
            status="failed",
            finished_at=100.0,
            error_code="safety_gate_failed",
        )
        gated.stage_outputs = {"train": {"prefix": f"private/{gated.id}/1/train", "adapter_sha256": "a" * 64}}
    kept = [put(done.id, "train-kept-6"), put(gated.id, "train")]
    gone = [
        put(done.id, "train"),
        put(done.id, "train-kept-60"),
        put(gated.id, "sanitize"),
        put(gated.id, "train-checkpoint-3"),
    ]
    sweep_job(database, storage, done.id, kept_ttl_seconds=1000.0, now=101.0)
    assert set(storage.keys("private")) == {kept[0], kept[1], *gone[2:]}
    assert set(sweep(database, storage, now=101.0, kept_ttl_seconds=1000.0)) == set(gone[2:])
    assert set(storage.keys("private")) == set(kept)

    with database.transaction() as session:  # a release of the gated one has begun
        waiting = make_job(session, tenant.project_id)
        waiting.starts_from = {"prefix": f"private/{gated.id}/1/train"}
    assert sweep(database, storage, now=1e6, kept_ttl_seconds=1000.0) == [kept[0]]
    with database.transaction() as session:
        session.get_one(Job, waiting.id).status = "succeeded"
    assert sweep(database, storage, now=1e6, kept_ttl_seconds=1000.0) == [kept[1]]


def test_no_key_of_a_kept_adapter_is_one_that_routes_read(bench: PipelineBench, storage_url: str) -> None:
    bench.run(bench.order)
    for key in storage_from_url(storage_url).keys(""):
        if WEIGHTS in key:
            assert key.startswith("private/"), key


def test_the_order_of_a_job_that_starts_from_a_kept_adapter(
    database: Database, tenant: Tenant, tmp_path: Path
) -> None:
    with database.transaction() as session:
        done = make_job(session, tenant.project_id, status="succeeded", stage="publish", finished_at=1.0)
        checkpoint = make_checkpoint(session, done)
        kept = of_checkpoint(checkpoint)
        waiver = {"reason": "because", "at": 5}
        new_id = start_job(session, done, kept, model_id="ft:x", gate_waived=waiver, now=2.0)

    def claimed() -> Order:
        with database.transaction() as session:
            claim = lease.claim(session, new_id, owner="me", ttl_seconds=60, max_attempts=9, now=3.0)
            assert claim is not None
            order = order_from_job(
                session,
                claim,
                scratch=tmp_path,
                storage_url="file:///x",
                checkpoint_every_seconds=1.0,
                min_examples=10,
                max_line_bytes=1000,
            )
            lease.hand_back(session, claim, reason="test", now=4.0)
            return order

    first, second = claimed(), claimed()
    assert first.starts_from == KeptOrder(
        job_id=done.id,
        checkpoint_id=checkpoint.id,
        prefix=checkpoint.prefix,
        adapter_sha256=checkpoint.adapter_sha256,
        figures=checkpoint.figures,
    )
    assert first.gate_waived == WaiverOrder(reason="because", at=5.0)
    assert first.model_id == second.model_id == "ft:x", "one name, however often it is tried"
    write_order(first, tmp_path / "order.json")
    assert read_order(tmp_path / "order.json") == first
