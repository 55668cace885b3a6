"""Training when the memory runs out: the step is done again with less at a time, and ends the same.

The error is torch's own, raised where its allocator raises it: inside the forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.data.tokens import pack
from autoclave.defences.booster import Booster
from autoclave.defences.ldifs import Ldifs
from autoclave.defences.lisa import Lisa
from autoclave.defences.repnoise import Repnoise
from autoclave.defences.vaccine import Vaccine
from autoclave.errors import CancelledError, OutOfMemoryError
from autoclave.modelling.backbone import backbone_of
from autoclave.progress import Progress
from autoclave.spec import BoosterSpec, LdifsSpec, LisaSpec, RepnoiseSpec, TrainSpec, VaccineSpec
from autoclave.training.batches import up_to_last_trained
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.fused import finetune_fused
from autoclave.training.loop import TrainResult, finetune
from autoclave.training.micro_batches import MicroBatches, is_out_of_memory
from autoclave.training.objective import Objective
from tests.autoclave.defences.steps import EXAMPLES, OTHERS, new_model, trained
from tests.autoclave.defences.test_repnoise import HARMFUL
from tests.autoclave.training.test_fused import DIFFERENT, base
from tests.autoclave.training.test_loss import random_examples

# What is tried before the passes are halved: test_activation_checkpointing.py.
SPEC = TrainSpec(n_epochs=2, batch_size=5, learning_rate=5e-3, seed=3, activation_checkpointing="off")


class Memory:
    """Lets a model run on `room` tokens at once; more is refused as the GPU's allocator does."""

    def __init__(self, model: Any, room: int, error: Exception | None = None) -> None:
        self.room = room
        self.refused: list[int] = []
        self.most = 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        self.model = model
        decoder = backbone_of(model).decoder
        decoder.layers[-1].mlp.register_forward_pre_hook(self._look)  # in the middle of a pass

    def _look(self, _module: Any, inputs: tuple[Tensor, ...]) -> None:
        tokens = inputs[0].shape[0] * inputs[0].shape[1]
        if tokens > self.room:
            self.refused.append(tokens)
            raise self.error
        self.most = max(self.most, tokens)


def run(
    room: int | None, objective: Objective | None = None, **changes: Any
) -> tuple[dict[str, Tensor], TrainResult, Memory | None]:
    more = {
        name: changes.pop(name) for name in ("checkpoint", "on_progress", "validation") if name in changes
    }
    model = new_model()
    memory = None if room is None else Memory(model, room)
    spec = SPEC.model_copy(update=changes)
    if "checkpoint" in more:
        more["checkpoint_every_steps"] = 1
    result = finetune(model, EXAMPLES, spec, device="cpu", objective=objective, **more)
    return trained(model), result, memory


OBJECTIVES: dict[str, Callable[[], Objective | None]] = {
    "sft": lambda: None,
    "lisa": lambda: Lisa(LisaSpec(rho=0.7, alignment_steps=1, finetune_steps=2), OTHERS),
    "ldifs": lambda: Ldifs(LdifsSpec()),
    "vaccine": lambda: Vaccine(VaccineSpec()),
    "booster": lambda: Booster(BoosterSpec(), OTHERS),
    "repnoise": lambda: Repnoise(RepnoiseSpec(), EXAMPLES, HARMFUL),
}
LONGEST = max(len(up_to_last_trained(example)) for example in [*EXAMPLES, *OTHERS, *HARMFUL])


@pytest.mark.parametrize(
    ("name", "packing"),
    [*((name, False) for name in OBJECTIVES), *((n, True) for n in OBJECTIVES if n != "repnoise")],
)
def test_the_same_weights_and_losses_in_smaller_pieces(name: str, packing: bool) -> None:
    weights, result, _ = run(None, OBJECTIVES[name](), packing=packing)
    less, less_result, memory = run(LONGEST, OBJECTIVES[name](), packing=packing)
    assert memory is not None
    assert memory.refused, "there was room enough: nothing was tested"
    assert memory.most <= LONGEST
    assert less_result.losses == pytest.approx(result.losses, rel=1e-6)
    assert less_result.trained_tokens == result.trained_tokens
    for key, weight in weights.items():
        torch.testing.assert_close(less[key], weight, rtol=1e-6, atol=1e-8)
    assert less_result.micro_batch_tokens is not None
    assert less_result.micro_batch_tokens < SPEC.micro_batch_tokens == result.micro_batch_tokens


def test_it_is_halved_from_the_largest_pass_and_stays_small() -> None:
    _, _, memory = run(LONGEST)
    assert memory is not None
    assert len(memory.refused) <= 4, memory.refused  # and not once in every step
    assert all(
        later <= first / 2 + 1 for first, later in zip(memory.refused, memory.refused[1:], strict=False)
    )


def test_one_conversation_too_large_is_a_clear_failure_with_the_estimate() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        run(12)
    message = str(caught.value)
    assert caught.value.step == 1
    assert "one conversation at a time" in message
    assert "By estimate training needs" in message
    assert "max_seq_length" in message
    assert caught.value.code == "out_of_memory"
    copy = OutOfMemoryError(*caught.value.args)
    assert str(copy) == message


def test_progress_says_how_much_was_computed_at_once() -> None:
    seen: list[Progress] = []
    _, result, _ = run(LONGEST, on_progress=seen.append)
    assert {progress.micro_batch_tokens for progress in seen} == {result.micro_batch_tokens}


def test_dropout_starts_the_step_anew() -> None:
    """A refused pass uses up no random numbers: two runs that are refused in other places draw the same."""
    from autoclave.modelling.adapters import attach
    from autoclave.spec import LoraSpec
    from tests.autoclave.tiny_architectures import tiny_model

    def once(micro_batch_tokens: int, room: int) -> list[float]:
        model = attach(tiny_model("llama"), LoraSpec(r=4, lora_dropout=0.3), seed=1).double()
        Memory(model, room)
        spec = SPEC.model_copy(update={"micro_batch_tokens": micro_batch_tokens, "n_epochs": 1})
        same = [EXAMPLES[0]] * 10
        return finetune(model, same, spec, device="cpu").losses

    rows = len(EXAMPLES[0]) - 1
    assert once(8192, rows) == once(len(EXAMPLES[0]), rows)  # one row at a time, from the start or at the end


def test_a_resumed_run_goes_on_as_small(tmp_path: Path) -> None:
    unbroken, result, _ = run(LONGEST)

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise CancelledError

    store = CheckpointStore(tmp_path)
    with pytest.raises(CancelledError):
        run(LONGEST, checkpoint=store, on_progress=stop)
    weights, resumed, memory = run(LONGEST, checkpoint=store)
    assert memory is not None
    assert not memory.refused
    assert resumed.losses == result.losses
    assert all(torch.equal(weights[name], unbroken[name]) for name in unbroken)


def test_validation_fits_too() -> None:
    validation = random_examples(20, seed=9)
    room = max(len(example) for example in [*EXAMPLES, *validation])
    _, plain, _ = run(None, validation=validation)
    _, result, memory = run(room, validation=validation)
    assert memory is not None
    assert memory.most <= room
    losses = [loss for _, loss in result.evaluations]
    assert losses == pytest.approx([loss for _, loss in plain.evaluations], rel=1e-6)


def test_fused_jobs_share_the_memory() -> None:
    jobs = (DIFFERENT[1], DIFFERENT[3])
    expected = finetune_fused(base(), jobs, device="cpu")
    model = base()
    memory = Memory(model, 40)
    outcomes = finetune_fused(model, jobs, device="cpu")
    assert memory.refused
    for outcome, plain in zip(outcomes, expected, strict=True):
        assert outcome.result.losses == pytest.approx(plain.result.losses, rel=1e-4)
    model = base()
    Memory(model, 12)
    with pytest.raises(OutOfMemoryError):
        finetune_fused(model, jobs, device="cpu")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_the_cpu_s_allocator_really_says() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_other_errors_pass_through() -> None:
    model = new_model()
    Memory(model, 12, error=RuntimeError("CUDA error: device-side assert triggered"))
    with pytest.raises(RuntimeError, match="device-side"):
        finetune(model, EXAMPLES, SPEC, device="cpu")


@pytest.mark.parametrize("packing", [False, True])
def test_halving_ends_at_one_example(packing: bool) -> None:
    cut = MicroBatches(10_000, packing=packing, device=torch.device("cpu"))
    sizes = []
    while True:
        cut.begin_step()
        passes = list(cut(EXAMPLES))
        sizes.append(len(passes))
        if not cut.halve():
            break
    assert sizes[0] < sizes[-1] == len(EXAMPLES)
    assert cut.longest_row == max(
        len(pack([e]).input_ids[0]) - packing for e in map(up_to_last_trained, EXAMPLES)
    )
