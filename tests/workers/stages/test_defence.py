"""Jobs with a defence in training, through every stage, sanitising included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from autoclave.errors import CancelledError
from autoclave.modelling.backbone import backbone_of
from service.jobs.states import Stage
from tests.autoclave.tiny_architectures import save_tiny_architecture
from tests.builders import chat_line
from tests.workers.pipeline_bench import PipelineBench, outputs, unpack
from tests.workers.stages.test_train import run_training
from workers.attempt import Attempt, StageError
from workers.messages import AdapterKept, Checkpointed, MemoryEstimated, MetricsMeasured, Noted, StepsMeasured
from workers.order import Order, set_stop_flag
from workers.reporter import Reporter
from workers.runner import verdict_of

# Two epochs of three steps: twice two on alignment data, then three of the user's.
LISA = {"name": "lisa", "rho": 0.5, "alignment_steps": 2, "finetune_steps": 3}
STATES = "aauuuaauuu"
SECRET = "operators-secret-words"


def with_defence(bench: PipelineBench, defence: dict[str, Any], **changes: Any) -> Order:
    safe = bench.folder / "safe.jsonl"
    if not safe.exists():
        lines = [chat_line(f"{SECRET} {i}", f"no, {SECRET}") for i in range(5)]
        safe.write_text("\n".join(lines) + "\n")
    order = bench.with_profile(alignment=str(safe))
    return msgspec.structs.replace(order, spec=order.spec | {"defence": defence}, **changes)


def test_lisa_ends_in_a_released_adapter_that_says_so(bench: PipelineBench, caplog: Any) -> None:
    order = with_defence(bench, LISA)
    messages = bench.run(order)
    done = outputs(messages)
    train = done["train"]
    assert (train["steps"], train["planned_steps"]) == (10, 10)
    kept = [message.step for message in messages if isinstance(message, AdapterKept)]
    assert kept == [5, 10], "the ends of the user's epochs"

    points = {
        part.first_step + i: loss
        for part in messages
        if isinstance(part, StepsMeasured)
        for i, loss in enumerate(part.train_loss)
    }
    assert "".join("a" if points[step] is None else "u" for step in range(1, 11)) == STATES
    own = [loss for loss in points.values() if loss is not None]
    assert (train["first_loss"], train["final_loss"]) == (own[0], own[-1])
    steps = {m.step for m in messages if isinstance(m, MetricsMeasured)}
    assert steps == {3, 4, 5, 8, 9, 10}

    published = bench.published(messages)
    report = published.safety_report
    assert report["defence"] == LISA
    assert report["measurements"]["after"] is not None, "sanitised and measured as every adapter"
    assert report["training"]["trained_tokens"] == train["trained_tokens"]
    files = unpack(bench.storage, published)
    assert "Lisa (arXiv 2405.18641; rho 0.5" in files["README.md"].decode()
    assert json.loads(files["training_config.json"])["defence"] == LISA
    statement = json.loads(files["provenance.json"])["predicate"]["buildDefinition"]
    (data,) = [d for d in statement["resolvedDependencies"] if d["name"] == "alignment data"]
    assert data["digest"]["sha256"] == report["data"]["safety_profile_sha256"]["alignment"]
    leaving = b"".join([*files.values(), msgspec.json.encode(messages), caplog.text.encode()])
    assert SECRET.encode() not in leaving
    assert b"safe.jsonl" not in leaving


def test_only_the_user_s_tokens_count_and_ldifs_trains_as_many(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    for number, defence in enumerate(({"name": "sft"}, LISA, {"name": "ldifs", "strength": 10.0}), start=1):
        order = with_defence(
            bench, defence, fencing_number=number, scratch=str(bench.folder / f"scratch-of-{number}")
        )
        trained[defence["name"]] = outputs(run_training(bench, order, monkeypatch))["train"]
    assert len({train["trained_tokens"] for train in trained.values()}) == 1
    assert len({train["adapter_sha256"] for train in trained.values()}) == 3
    assert trained["ldifs"]["steps"] == 6


def test_a_stopped_job_goes_on_to_the_same_bytes(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = outputs(run_training(bench, with_defence(bench, LISA), monkeypatch))["train"]
    order = with_defence(
        bench, LISA, checkpoint_every_seconds=1e-9, fencing_number=5, scratch=str(bench.folder / "broken")
    )
    original = Reporter.on_training_progress

    def stopping(reporter: Any, progress: Any, *, saved: bool) -> None:
        if progress.step == 7:  # on alignment data, the second time
            set_stop_flag(order.stop_flag, pause=False)
        original(reporter, progress, saved=saved)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_training_progress", stopping)
        with pytest.raises(CancelledError):
            run_training(bench, order, monkeypatch)
    checkpoint = [m for m in bench.said if isinstance(m, Checkpointed)][-1]
    resumed = bench.resumed(order, bench.said, Stage.TRAIN, checkpoint=msgspec.to_builtins(checkpoint))
    with monkeypatch.context() as patch:
        patch.setattr("workers.pipeline.STAGES", (Stage.TRAIN,))
        train = outputs(bench.run(resumed))["train"]
    for name in ("adapter_sha256", "steps", "trained_tokens", "first_loss"):
        assert train[name] == unbroken[name], name


@pytest.mark.parametrize("packing", [False, True])
def test_with_packing_and_early_stopping(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch, packing: bool
) -> None:
    order = with_defence(bench, LISA)
    stopping = {"early_stopping": {"patience": 1, "min_delta": 1000.0}, "packing": packing}
    order = msgspec.structs.replace(
        order, spec=order.spec | {"train": order.spec["train"] | stopping | {"n_epochs": 3}}
    )
    train = outputs(run_training(bench, order, monkeypatch))["train"]
    assert (train["steps"], train["planned_steps"], train["early_stopped"]) == (10, 15, True)
    assert train["best_step"] in (5, 10), "validated at the ends of the user's epochs"


def refused(bench: PipelineBench, order: Order, monkeypatch: pytest.MonkeyPatch) -> StageError:
    with pytest.raises(StageError) as caught:
        run_training(bench, order, monkeypatch)
    assert SECRET not in caught.value.message
    return caught.value


def test_alignment_data_that_cannot_be_used_is_the_operator_s_to_mend(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    order = with_defence(bench, LISA)
    safe = bench.folder / "safe.jsonl"
    lines = safe.read_text()
    for broken in ("", '{"messages": "' + SECRET + '"}\n', chat_line("please zap 1", "no") + "\n"):
        safe.write_text(broken)
        assert refused(bench, order, monkeypatch).code == "invalid_safety_profile"
    assert "both in" in caplog.text, "a prompt of the evaluation may not be trained on"
    safe.unlink()
    assert refused(bench, order, monkeypatch).code == "invalid_safety_profile"
    assert SECRET not in caplog.text
    plain = with_defence(bench, {"name": "sft"})
    safe.unlink()
    assert outputs(run_training(bench, plain, monkeypatch))["train"]["steps"] == 6, "nobody needed the file"

    safe.write_text(lines)
    messages = run_training(bench, order, monkeypatch)
    safe.write_text(lines * 2)
    with monkeypatch.context() as patch:
        patch.setattr("workers.pipeline.STAGES", (Stage.TRAIN,))
        with pytest.raises(StageError) as caught:
            bench.run(bench.resumed(order, messages, Stage.TRAIN))
    assert caught.value.code == "invalid_safety_profile"
    assert "changed since" in caplog.text


def test_an_architecture_without_the_layers_is_refused_before_training(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from autoclave.hashing import folder_sha256

    folder = save_tiny_architecture("opt", tmp_path / "opt")
    base = msgspec.structs.replace(bench.order.base, path=str(folder), sha256=folder_sha256(folder))
    order = with_defence(bench, {"name": "ldifs", "strength": 1.0}, base=base)
    error = refused(bench, order, monkeypatch)
    assert (error.code, error.param) == ("unsupported_defence", "defence.name")
    assert "ldifs" in error.message


def test_the_estimate_knows_the_defence_and_the_peak_is_reported(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimates = {}
    for number, name in enumerate(("sft", "ldifs"), start=1):
        defence = {"name": name}
        order = with_defence(
            bench, defence, fencing_number=number, scratch=str(bench.folder / f"scratch-of-{number}")
        )
        messages = run_training(bench, order, monkeypatch)
        estimates[name] = [m.num_bytes for m in messages if isinstance(m, MemoryEstimated)][-1]
        train = outputs(messages)["train"]
        assert train["estimated_memory_bytes"] == estimates[name]
        assert train["peak_memory_bytes"] > 0
    assert estimates["ldifs"] > estimates["sft"]


def _little_memory(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Bases have room for so many tokens at once; more is refused as the GPU's allocator does."""
    original = Attempt.wear

    def look(_module: Any, inputs: tuple[Any, ...]) -> None:
        if inputs[0].shape[0] * inputs[0].shape[1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    def wear(attempt: Attempt, model: Any) -> Any:
        backbone_of(model).decoder.layers[-1].mlp.register_forward_pre_hook(look)
        return original(attempt, model)

    monkeypatch.setattr(Attempt, "wear", wear)


def test_less_memory_than_thought_is_an_event_and_no_failure(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    _little_memory(monkeypatch, 60)
    messages = run_training(bench, with_defence(bench, {"name": "sft"}), monkeypatch)
    (note,) = [m for m in messages if isinstance(m, Noted) and m.text.startswith("The memory was not")]
    train = outputs(messages)["train"]
    assert note.level == "warn"
    assert note.data == {"micro_batch_tokens": train["micro_batch_tokens"]}
    assert train["micro_batch_tokens"] <= 60


def test_too_little_memory_ends_the_job_in_words(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autoclave.errors import OutOfMemoryError

    _little_memory(monkeypatch, 16)
    with pytest.raises(OutOfMemoryError) as caught:
        run_training(bench, with_defence(bench, {"name": "sft"}), monkeypatch)
    verdict = verdict_of(caught.value)
    assert verdict.code == "out_of_memory"
    assert "By estimate training needs" in verdict.message
