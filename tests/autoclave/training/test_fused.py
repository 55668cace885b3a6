"""Fused jobs end with the weights that each would have alone, whatever happens to the others."""

from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import CancelledError, InputError, ModelError, NonFiniteLossError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.progress import Progress
from autoclave.spec import EarlyStopping, LoraSpec, TrainSpec
from autoclave.training.batches import ShuffledSteps
from autoclave.training.fused import finetune_fused
from autoclave.training.fused_job import FusedJob, Outcome
from autoclave.training.loop import TrainResult, finetune
from tests.autoclave.tiny_architectures import ARCHITECTURES, tiny_model
from tests.autoclave.training.test_loss import random_examples

ALL = "all-linear"


def job(name: str, count: int = 9, *, seed: int = 0, lora: Any = None, **train: Any) -> FusedJob:
    spec = TrainSpec(**{"n_epochs": 2, "batch_size": 4, "learning_rate": 2e-3, "seed": seed, **train})
    return FusedJob(name, random_examples(count, seed=seed), LoraSpec(**(lora or {"r": 4})), spec)


DIFFERENT = (
    job("first", 14, seed=1, lora={"r": 4, "target_modules": ALL}, n_epochs=3),
    job("second", 5, seed=2, lora={"r": 2, "lora_alpha": 5.0}, learning_rate=5e-3, schedule="linear"),
    job("third", 11, seed=3, lora={"r": 7, "target_modules": ("o_proj", "up_proj")}, batch_size=3),
    job("fourth", 6, seed=4, weight_decay=0.3, max_grad_norm=0.05, warmup_ratio=0.5, n_epochs=1),
)


def base(architecture: str = "llama") -> Any:
    return tiny_model(architecture)


def fused(jobs: tuple[FusedJob, ...] = DIFFERENT, architecture: str = "llama", **more: Any) -> list[Outcome]:
    return finetune_fused(base(architecture), jobs, device="cpu", **more)


def alone(one: FusedJob, architecture: str = "llama") -> tuple[dict[str, Tensor], TrainResult]:
    model = attach(base(architecture), one.lora, seed=one.train.seed)
    result = finetune(model, one.examples, one.train, device="cpu", validation=one.validation)
    return adapter_state(model), result


def assert_as_alone(
    outcome: Outcome, one: FusedJob, architecture: str = "llama", tolerance: float = 1e-5
) -> None:
    weights, result = alone(one, architecture)
    assert outcome.error is None
    assert outcome.result.losses == pytest.approx(result.losses, rel=1e-5)
    assert outcome.state.keys() == weights.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(outcome.state[name], tensor, rtol=0, atol=tolerance)
    assert outcome.result.evaluations == [
        (step, pytest.approx(loss, rel=1e-5)) for step, loss in result.evaluations
    ]
    for name in ("steps", "planned_steps", "trained_tokens", "early_stopped"):
        assert getattr(outcome.result, name) == getattr(result, name), name


def assert_same_bits(a: Outcome, b: Outcome) -> None:
    assert a.result.losses == b.result.losses
    assert all(torch.equal(a.state[name], b.state[name]) for name in b.state)


@pytest.mark.parametrize("more", [{}, {"width": 2}, {"width": 1}, {"row_tokens": 40}], ids=str)
def test_weights_and_losses_are_those_of_separate_runs(more: dict[str, int]) -> None:
    for outcome, one in zip(fused(**more), DIFFERENT, strict=True):
        assert_as_alone(outcome, one)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in ("llama", "opt")])
def test_on_other_architectures(architecture: str) -> None:
    jobs = DIFFERENT[:2]
    for outcome, one in zip(fused(jobs, architecture), jobs, strict=True):
        # Adam makes a whole step of a gradient that is almost 0, whose last bits are half of it.
        assert_as_alone(outcome, one, architecture, tolerance=1e-4)


def test_each_job_validates_and_stops_by_itself() -> None:
    stopping = {"early_stopping": EarlyStopping(patience=1), "evaluations_per_epoch": 2, "n_epochs": 6}
    stopped = FusedJob(
        "stopped",
        random_examples(8, seed=5),
        LoraSpec(r=4),
        TrainSpec(batch_size=4, learning_rate=2e-2, seed=5, **stopping),
        validation=random_examples(6, seed=77),
    )
    watched = FusedJob(
        "watched", DIFFERENT[0].examples, DIFFERENT[0].lora, DIFFERENT[0].train, random_examples(4, seed=8)
    )
    jobs = (DIFFERENT[2], stopped, watched)
    outcomes = fused(jobs)
    assert outcomes[1].result.early_stopped
    assert len(outcomes[2].result.evaluations) == 3
    for outcome, one in zip(outcomes, jobs, strict=True):
        assert_as_alone(outcome, one)


def with_callback(one: FusedJob, on_progress: Any) -> FusedJob:
    return FusedJob(one.name, one.examples, one.lora, one.train, one.validation, on_progress)


def cancelled_after(step: int) -> Any:
    def on_progress(progress: Progress) -> None:
        if progress.step == step:
            raise CancelledError

    return on_progress


def diverging(seed: int) -> FusedJob:
    """The first step makes B so large that the second has no finite loss."""
    lora = {"r": 4, "lora_alpha": 1e15, "target_modules": ALL}
    return job("diverging", 12, seed=seed, lora=lora, learning_rate=1.0, max_grad_norm=1e30, warmup_ratio=0.0)


def test_a_job_that_diverges_changes_no_bit_of_the_others() -> None:
    bad = diverging(9)
    seen = fused((DIFFERENT[0], bad, DIFFERENT[2]))
    error = seen[1].error
    assert isinstance(error, NonFiniteLossError)
    assert 1 < error.step < 6
    order = ShuffledSteps(12, batch_size=4, n_epochs=2, seed=9)
    assert error.examples == tuple(index + 1 for index in order.at(error.step - 1))
    # A job with the same data that is healthy, and gone from the same step on: the others had the same rows.
    train = bad.train.model_copy(update={"learning_rate": 1e-3, "max_grad_norm": 1.0})
    lora = LoraSpec(r=4, target_modules=ALL)
    calm = FusedJob("calm", bad.examples, lora, train, (), cancelled_after(error.step))
    compared = fused((DIFFERENT[0], calm, DIFFERENT[2]))
    assert isinstance(compared[1].error, CancelledError)
    for index in (0, 2):
        assert_same_bits(seen[index], compared[index])
        assert_as_alone(seen[index], (DIFFERENT[0], bad, DIFFERENT[2])[index])
    assert len(seen[1].result.losses) == error.step - 1
    assert all(tensor.isfinite().all() for tensor in seen[1].state.values()), "as before the failed step"


def test_a_cancelled_job_leaves_with_its_last_step_and_the_others_go_on() -> None:
    jobs = (with_callback(DIFFERENT[0], cancelled_after(2)), *DIFFERENT[1:])
    ended: list[tuple[int, Outcome]] = []
    outcomes = fused(jobs, on_end=lambda index, outcome: ended.append((index, outcome)))
    assert isinstance(outcomes[0].error, CancelledError)
    assert outcomes[0].result.steps == 2
    for outcome, one in list(zip(outcomes, DIFFERENT, strict=True))[1:]:
        assert_as_alone(outcome, one)
    assert sorted(index for index, _ in ended) == [0, 1, 2, 3]
    assert ended[0][0] == 0 or ended[1][0] == 0


def test_the_same_jobs_give_the_same_bits() -> None:
    for a, b in zip(fused(), fused(), strict=True):
        assert_same_bits(a, b)


def test_the_base_is_as_it_was() -> None:
    model = base()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    finetune_fused(model, DIFFERENT[:2], device="cpu")
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any("forward" in vars(module) for module in model.modules())
    assert not hasattr(model, "peft_config")


def test_another_exception_ends_all() -> None:
    def on_progress(progress: Progress) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fused((with_callback(DIFFERENT[0], on_progress), DIFFERENT[1]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (FusedJob("entry 2", [], LoraSpec(), TrainSpec()), "entry 2: there is nothing to train on"),
        (job("entry 2", lora={"lora_dropout": 0.1}), "entry 2: fused jobs cannot have LoRA dropout"),
        (job("entry 2", lora={"target_modules": ("x",)}), r"entry 2: target modules \['x'\]"),
        (job("entry 2", early_stopping={"patience": 1}), "entry 2: early stopping needs a validation set"),
    ],
    ids=["no examples", "dropout", "modules", "no validation"],
)
def test_what_cannot_be_fused_is_refused_by_name(wrong: FusedJob, words: str) -> None:
    steps: list[Progress] = []
    with pytest.raises(InputError, match=words):
        fused((with_callback(DIFFERENT[0], steps.append), wrong))
    assert not steps, "before anything is trained"


def test_a_base_with_dropout_is_refused() -> None:
    with pytest.raises(ModelError, match="dropout of its own"):
        fused(architecture="opt")
    with pytest.raises(InputError, match="no job"):
        fused(())
    with pytest.raises(InputError, match="at least one job"):
        fused(width=0)


def test_one_example_longer_than_a_row_is_a_pass_of_its_own() -> None:
    long: list[Example] = random_examples(3, seed=6, longest=30)
    one = FusedJob("long", long, LoraSpec(r=2), TrainSpec(n_epochs=1, batch_size=2))
    (outcome,) = fused((one,), row_tokens=8)
    assert_as_alone(outcome, one)
