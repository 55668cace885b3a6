"""The validation loss and early stopping in a job: what is said, what is kept, and going on after a stop."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from autoclave.errors import CancelledError
from service.jobs.states import Stage
from tests.workers.pipeline_bench import PipelineBench, outputs
from workers.attempt import Attempt, StageError
from workers.messages import Checkpointed, MemoryEstimated, MetricsMeasured, Noted, StepsMeasured
from workers.order import Order, TokenCacheOrder, set_stop_flag
from workers.profile_files import realignment
from workers.reporter import Reporter

# A loss never falls by a thousand nats: the second and third evaluation are in vain.
STOPPING = {"early_stopping": {"patience": 2, "min_delta": 1000.0}}


def with_training(bench: PipelineBench, **train: Any) -> Order:
    spec = bench.order.spec
    return msgspec.structs.replace(bench.order, spec=spec | {"train": spec["train"] | train})


def run_training(bench: PipelineBench, order: Order, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stages prepare and train alone."""
    with monkeypatch.context() as patch:
        patch.setattr("workers.pipeline.STAGES", (Stage.PREPARE, Stage.TRAIN))
        return bench.run(order)


def test_the_validation_loss_is_measured_once_an_epoch(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = run_training(bench, bench.order, monkeypatch)
    curve = [message for message in messages if isinstance(message, StepsMeasured)]
    points = {
        part.first_step + i: loss
        for part in curve
        for i, loss in enumerate(part.valid_loss)
        if loss is not None
    }
    assert list(points) == [3, 6]
    events = {m.step: m.valid_loss for m in messages if isinstance(m, MetricsMeasured)}
    assert {step: loss for step, loss in events.items() if loss is not None} == points
    train = outputs(messages)["train"]
    assert (train["steps"], train["planned_steps"], train["early_stopped"]) == (6, 6, False)
    assert train["best_valid_loss"] == min(points.values()) == points[train["best_step"]]


def test_it_stops_early_says_so_and_keeps_the_best(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = with_training(bench, evaluations_per_epoch=3, learning_rate=0.1, **STOPPING)
    messages = run_training(bench, order, monkeypatch)
    train = outputs(messages)["train"]
    assert (train["steps"], train["planned_steps"], train["early_stopped"]) == (3, 6, True)
    (note,) = [m for m in messages if isinstance(m, Noted) and m.text.startswith("Stopped early")]
    assert note.text.startswith(
        f"Stopped early after step 3: the weights of step {train['best_step']} are ke"
    )
    assert note.data == {name: train[name] for name in ("best_step", "best_valid_loss")}
    steps = [
        m.first_step + i for m in messages if isinstance(m, StepsMeasured) for i in range(len(m.train_loss))
    ]
    assert steps == [1, 2, 3], "the last steps were sent although the plan had more"


def test_a_job_stopped_between_evaluations_goes_on_to_the_same_bytes(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"evaluations_per_epoch": 2, "n_epochs": 3, "learning_rate": 0.1} | STOPPING
    unbroken = outputs(run_training(bench, with_training(bench, **changes), monkeypatch))["train"]
    assert (unbroken["steps"], unbroken["early_stopped"]) == (5, True), "evaluated after 2, 3 and 5"

    order = msgspec.structs.replace(
        with_training(bench, **changes),
        checkpoint_every_seconds=1e-9,
        fencing_number=5,
        scratch=str(bench.folder / "broken"),
    )
    original = Reporter.on_training_progress

    def stopping(reporter: Any, progress: Any, *, saved: bool) -> None:
        if progress.step == 4:
            set_stop_flag(order.stop_flag, pause=False)
        original(reporter, progress, saved=saved)

    with monkeypatch.context() as patch:
        patch.setattr(Reporter, "on_training_progress", stopping)
        with pytest.raises(CancelledError):
            run_training(bench, order, monkeypatch)
    checkpoint = [m for m in bench.said if isinstance(m, Checkpointed)][-1]
    assert checkpoint.step == 4
    resumed = bench.resumed(order, bench.said, Stage.TRAIN, checkpoint=msgspec.to_builtins(checkpoint))
    with monkeypatch.context() as patch:
        patch.setattr("workers.pipeline.STAGES", (Stage.TRAIN,))
        train = outputs(bench.run(resumed))["train"]
    for name in ("adapter_sha256", "steps", "best_step", "best_valid_loss", "trained_tokens"):
        assert train[name] == unbroken[name], name


def test_packing_and_inputs_reach_the_loop(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = outputs(run_training(bench, bench.order, monkeypatch))["train"]
    order = msgspec.structs.replace(
        with_training(bench, packing=True, train_on_inputs=True), fencing_number=2
    )
    train = outputs(run_training(bench, order, monkeypatch))["train"]
    assert train["trained_tokens"] > 2 * plain["trained_tokens"]
    assert train["adapter_sha256"] != plain["adapter_sha256"]


def test_a_later_attempt_finds_its_tokens(bench: PipelineBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And trains to the same bytes. Without a cache in the order nothing is kept."""
    plain = outputs(run_training(bench, bench.order, monkeypatch))["train"]
    folder = bench.folder / "tokens"
    cache = TokenCacheOrder(folder=str(folder), max_bytes=10**6)
    assert not folder.exists()
    for number in (2, 3):
        order = msgspec.structs.replace(bench.order, token_cache=cache, fencing_number=number)
        if number == 3:

            def encode(*_: Any, **__: Any) -> None:
                raise AssertionError("tokenised again")

            monkeypatch.setattr("autoclave.data.token_cache.encode", encode)
        train = outputs(run_training(bench, order, monkeypatch))["train"]
        assert train["adapter_sha256"] == plain["adapter_sha256"]
        assert len(list(folder.iterdir())) == 2, "training and validation file"


def test_a_validation_set_that_is_cut_to_nothing_cannot_stop_anything(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # "question 1" and its end of turn are shorter than "held out 1, at length" before its answer.
    from tests.builders import chat_line

    text = chat_line("held out, at length, " * 4, "answer") + "\n"
    bench.files["validation"].write_text(text)
    bench.storage.put("files/validation", bench.files["validation"])
    order = msgspec.structs.replace(
        with_training(bench, max_seq_length=40, **STOPPING), validation_file=bench.file("validation")
    )
    with pytest.raises(StageError) as caught:
        run_training(bench, order, monkeypatch)
    assert (caught.value.code, caught.value.param) == ("invalid_validation_file", "validation_file")


def test_a_short_longest_row_does_not_cut_the_realignment_set(bench: PipelineBench) -> None:
    """Else a user could hide harm from the sanitiser."""
    lengths = []
    for length in (8, 2048):
        order = with_training(bench, max_seq_length=length)
        attempt = Attempt(order, bench.storage, None)  # type: ignore[arg-type]
        lengths.append([len(example) for example in realignment(attempt).examples])
    assert lengths[0] == lengths[1]
    assert min(lengths[0]) > 8


def test_a_worker_with_little_memory_computes_layers_twice(
    bench: PipelineBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_training(bench, bench.order, monkeypatch)
    (needed,) = [m.num_bytes for m in plain if isinstance(m, MemoryEstimated)][1:]
    assert outputs(plain)["train"]["activation_checkpointing"] is False
    order = msgspec.structs.replace(bench.order, memory_bytes=needed - 1)
    messages = run_training(bench, order, monkeypatch)
    (less,) = [m.num_bytes for m in messages if isinstance(m, MemoryEstimated)][1:]
    assert less < needed
    (note,) = [m for m in messages if isinstance(m, Noted) and m.text.startswith("The memory is short")]
    assert note.data == {"activation_checkpointing": True}
    train = outputs(messages)["train"]
    assert train["activation_checkpointing"] is True
    assert train["estimated_memory_bytes"] == less
    assert train["adapter_sha256"] == outputs(plain)["train"]["adapter_sha256"], "the same bits"
    off = with_training(bench, activation_checkpointing="off")
    off = msgspec.structs.replace(off, memory_bytes=needed - 1)
    messages = run_training(bench, off, monkeypatch)
    assert [m.num_bytes for m in messages if isinstance(m, MemoryEstimated)][1] == needed
