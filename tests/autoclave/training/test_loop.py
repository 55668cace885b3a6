"""The loop against a slow, plain reference; determinism; resuming; guards."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autoclave.data.tokens import IGNORED, Batch, Example
from autoclave.errors import CancelledError, InputError, NonFiniteLossError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.progress import Progress
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.batches import epoch_order
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.loop import TrainResult, finetune
from autoclave.training.loss import Summed, causal_loss
from autoclave.training.objective import Supervised
from autoclave.training.schedule import learning_rate_at
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(14, seed=4)
# From this code, which test_equal_to_the_plain_reference holds against the reference.
GOLDEN = [6.2676, 6.107, 6.367, 6.4212, 6.0076, 6.0186, 6.0887, 5.6782]
SPEC = TrainSpec(n_epochs=2, batch_size=4, learning_rate=5e-3, seed=3)  # 8 steps, the 4th and 8th smaller


def fresh(base_dir: Path, dropout: float = 0.0) -> Any:
    return attach(load_base(base_dir).model, LoraSpec(r=4, lora_dropout=dropout), seed=1)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in adapter_state(model).items()}


def train(
    base_dir: Path, spec: TrainSpec = SPEC, dropout: float = 0.0, **more: Any
) -> tuple[Any, TrainResult]:
    model = fresh(base_dir, dropout)
    result = finetune(model, EXAMPLES, spec, device="cpu", **more)
    return weights(model), result


def plain_reference(model: Any, examples: list[Example], spec: TrainSpec) -> list[float]:
    """One example at a time, full logits, torch's own AdamW one tensor at a time."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=spec.weight_decay, foreach=False)
    per_epoch = math.ceil(len(examples) / spec.batch_size)
    losses = []
    for step in range(spec.n_epochs * per_epoch):
        epoch, position = divmod(step, per_epoch)
        order = epoch_order(epoch, num_examples=len(examples), seed=spec.seed)
        chosen = [examples[i] for i in order[position * spec.batch_size : (position + 1) * spec.batch_size]]
        num_trained = sum(int((e.labels[1:] != IGNORED).sum()) for e in chosen)
        optimizer.zero_grad()
        total = 0.0
        for example in chosen:
            ids = torch.tensor(example.input_ids, dtype=torch.int64)[None]
            labels = torch.tensor(example.labels, dtype=torch.int64)
            logits = model(input_ids=ids).logits[0, :-1]
            loss = functional.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
            (loss / num_trained).backward()
            total += loss.item()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))
        for p in parameters:
            p.grad *= min(1.0, spec.max_grad_norm / norm)
        optimizer.param_groups[0]["lr"] = learning_rate_at(
            step,
            total_steps=spec.n_epochs * per_epoch,
            peak=spec.learning_rate,
            schedule=spec.schedule,
            warmup_ratio=spec.warmup_ratio,
        )
        optimizer.step()
        losses.append(total / num_trained)
    return losses


@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.5}, {"max_grad_norm": 0.05}, {"schedule": "linear", "warmup_ratio": 0.5}],
    ids=str,
)
def test_equal_to_the_plain_reference(base_dir: Path, changes: dict[str, Any]) -> None:
    spec = SPEC.model_copy(update=changes)
    model = fresh(base_dir)
    expected = plain_reference(model, EXAMPLES, spec)
    trained, result = train(base_dir, spec)
    assert result.losses == pytest.approx(expected, rel=2e-5)
    for name, tensor in weights(model).items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=2e-5)
    assert result.steps == 8
    assert result.trained_tokens == 2 * sum(int((e.labels[1:] != IGNORED).sum()) for e in EXAMPLES)
    assert result.losses[-1] < result.losses[0]


def test_golden_losses(base_dir: Path) -> None:
    """Catches a silent change of data order, initialisation, schedule or optimiser."""
    _, result = train(base_dir)
    assert result.losses == pytest.approx(GOLDEN, abs=2e-4)


def test_micro_batches_change_nothing_but_last_bits(base_dir: Path) -> None:
    whole, a = train(base_dir)
    cut, b = train(base_dir, SPEC.model_copy(update={"micro_batch_tokens": 64}))
    assert a.losses == pytest.approx(b.losses, rel=1e-5)
    for name in whole:
        torch.testing.assert_close(whole[name], cut[name], rtol=1e-3, atol=2e-5)


def test_same_seed_same_bits_whatever_the_global_generator(base_dir: Path) -> None:
    torch.manual_seed(1)
    first, a = train(base_dir, dropout=0.3)
    expected_next = torch.rand(2)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(2), expected_next)  # training took nothing from the caller's generator
    torch.manual_seed(2)
    second, b = train(base_dir, dropout=0.3)
    assert a.losses == b.losses
    assert all(torch.equal(first[name], second[name]) for name in first)
    _, other = train(base_dir, SPEC.model_copy(update={"seed": 4}), dropout=0.3)
    assert other.losses != a.losses


def test_dropout_is_on_in_training_and_off_after(base_dir: Path) -> None:
    assert train(base_dir, dropout=0.5)[1].losses != train(base_dir)[1].losses
    model = fresh(base_dir, 0.5)
    finetune(model, EXAMPLES, SPEC, device="cpu")
    assert not model.training


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_resumed_run_ends_with_the_same_bits(base_dir: Path, tmp_path: Path, stop_after: int) -> None:
    unbroken, expected = train(base_dir, dropout=0.3)

    def stop(progress: Progress) -> None:
        if progress.step == stop_after:
            raise CancelledError

    store = CheckpointStore(tmp_path / "run")
    options: dict[str, Any] = {"dropout": 0.3, "checkpoint": store, "checkpoint_every_steps": 1}
    with pytest.raises(CancelledError):
        train(base_dir, on_progress=stop, **options)
    steps: list[int] = []
    resumed, result = train(base_dir, on_progress=lambda p: steps.append(p.step), **options)
    assert steps == list(range(stop_after + 1, 9))
    assert result.losses == expected.losses
    assert result.trained_tokens == expected.trained_tokens
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_checkpoint_of_another_run_is_refused(base_dir: Path, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    train(base_dir, checkpoint=store, checkpoint_every_steps=4)
    with pytest.raises(InputError, match="another run"):
        train(base_dir, SPEC.model_copy(update={"learning_rate": 1e-3}), checkpoint=store)
    smaller = SPEC.model_copy(update={"micro_batch_tokens": 64})
    assert train(base_dir, smaller, checkpoint=store)[1].steps == 8


def test_progress_of_every_step(base_dir: Path) -> None:
    seen: list[Progress] = []
    _, result = train(base_dir, on_progress=seen.append)
    assert [(p.stage, p.step, p.total_steps) for p in seen] == [("train", s, 8) for s in range(1, 9)]
    assert [p.loss for p in seen] == result.losses
    assert all(p.tokens_per_second and p.tokens_per_second > 0 for p in seen)
    assert seen[-1].seconds_remaining == 0
    assert seen[0].learning_rate == pytest.approx(SPEC.learning_rate / 2)


def test_divergence_is_caught_before_the_step(base_dir: Path) -> None:
    calls = 0

    def diverging(model: Any, batch: Batch) -> Summed:
        nonlocal calls
        calls += 1
        summed = causal_loss(model, batch)
        return summed._replace(loss=summed.loss * torch.inf) if calls == 3 else summed

    model = fresh(base_dir)
    spec = SPEC.model_copy(update={"batch_size": 1})
    with pytest.raises(NonFiniteLossError) as caught:
        finetune(model, EXAMPLES, spec, device="cpu", objective=Supervised(diverging))
    assert caught.value.step == 3
    place = epoch_order(0, num_examples=len(EXAMPLES), seed=spec.seed)[2] + 1
    assert caught.value.examples == (place,)
    assert f"at step 3 (examples {place})" in str(caught.value)
    assert all(tensor.isfinite().all() for tensor in weights(model).values())
    assert not model.training


def test_nothing_to_train_on(base_dir: Path) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        finetune(fresh(base_dir), [], SPEC, device="cpu")
