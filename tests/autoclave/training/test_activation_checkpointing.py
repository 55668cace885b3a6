"""Decoder blocks that are computed again in the backward pass: the same bits, and when that is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoclave.data.tokens import collate
from autoclave.errors import CancelledError, ModelError, OutOfMemoryError
from autoclave.memory import MemoryEstimate
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.checkpointed_blocks import CheckpointedBlocks
from autoclave.progress import Progress
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.activation_memory import ActivationMemory, Room, free_bytes
from autoclave.training.batches import is_cheap_to_halve
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.fused import finetune_fused
from autoclave.training.loop import TrainResult, finetune
from autoclave.training.loss import causal_loss
from tests.autoclave.defences.steps import EXAMPLES, new_model, trained
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, tiny_model
from tests.autoclave.training.test_compiled import random_examples
from tests.autoclave.training.test_fused import DIFFERENT, base
from tests.autoclave.training.test_out_of_memory import LONGEST, OBJECTIVES, Memory

SPEC = TrainSpec(n_epochs=2, batch_size=5, learning_rate=5e-3, seed=3, activation_checkpointing="off")
ON = SPEC.model_copy(update={"activation_checkpointing": "on"})
AUTO = SPEC.model_copy(update={"activation_checkpointing": "auto"})


@pytest.mark.parametrize(
    ("name", "packing"),
    [*((name, False) for name in OBJECTIVES), *((n, True) for n in OBJECTIVES if n != "repnoise")],
)
def test_every_method_ends_with_the_same_bits(name: str, packing: bool) -> None:
    found = []
    for choice in (SPEC, ON):
        model = new_model()
        spec = choice.model_copy(update={"packing": packing, "micro_batch_tokens": 64})
        result = finetune(model, EXAMPLES, spec, device="cpu", objective=OBJECTIVES[name]())
        found.append((result.losses, trained(model)))
    (losses, weights), (same_losses, same_weights) = found
    assert losses == same_losses
    assert all(torch.equal(weights[key], same_weights[key]) for key in weights)


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_every_architecture_draws_the_same_dropout(architecture: str) -> None:
    """Packed, so that attention is ours, with dropout in the adapter and (OPT) in the base."""
    found: list[dict[str, Tensor]] = []
    for choice in (SPEC, ON):
        lora = LoraSpec(r=4, lora_dropout=0.3, target_modules="all-linear")
        model = attach(tiny_model(architecture), lora, seed=1)
        spec = choice.model_copy(update={"packing": True, "n_epochs": 1})
        result = finetune(model, EXAMPLES, spec, device="cpu")
        assert result.activation_checkpointing == (spec.activation_checkpointing == "on")
        found.append(adapter_state(model))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_blocks_are_computed_twice_and_keep_nothing() -> None:
    model = new_model()
    calls, saved = [], []
    for layer in model.get_base_model().model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    blocks = CheckpointedBlocks(model)
    batch = collate(EXAMPLES[:3], pad_token_id=0)

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def count(on: bool) -> tuple[int, int]:
        calls.clear()
        saved.clear()
        blocks.on = on
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = causal_loss(model, batch).loss
        kept = sum(saved)
        loss.backward()
        return len(calls), kept

    with blocks.installed() as num_layers:
        plain_calls, plain_kept = count(on=False)
        calls_twice, kept = count(on=True)
        with torch.no_grad():
            calls.clear()
            causal_loss(model, batch)
            assert len(calls) == num_layers, "without a gradient nothing is computed again"
    assert (plain_calls, calls_twice) == (num_layers, 2 * num_layers)
    assert kept < plain_kept / 5, (kept, plain_kept)
    assert not any("forward" in vars(layer) for layer in model.get_base_model().model.layers)


GB = 10**9
PLAIN = MemoryEstimate(
    base=5 * GB, adapter=GB, optimizer=3 * GB, activations=9 * GB, defence=0, total=18 * GB
)
LESS = MemoryEstimate(base=5 * GB, adapter=GB, optimizer=3 * GB, activations=2 * GB, defence=0, total=11 * GB)


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(free=12 * GB), False),  # beside the model 12 are needed
        (Room(free=12 * GB - 1), True),
        (Room(free=5 * GB), True),
        (Room(free=5 * GB - 1), False),  # no help either
        (Room(free=None), False),
        (Room(free=12 * GB, allowed=18 * GB), False),
        (Room(free=12 * GB, allowed=17 * GB), True),
        (Room(free=None, allowed=11 * GB), True),
        (Room(free=None, allowed=10 * GB), False),
    ],
)
def test_auto_goes_by_what_fits(room: Room, expected: bool) -> None:
    def estimate(checkpointing: bool) -> MemoryEstimate:
        return LESS if checkpointing else PLAIN

    for choice, chosen in (("auto", expected), ("on", True), ("off", False)):
        activations = ActivationMemory(new_model(), choice)  # type: ignore[arg-type]
        activations.choose(room, estimate)
        assert activations.is_checkpointed == chosen
    unknown = ActivationMemory(new_model(), "auto")
    unknown.choose(Room(free=0), lambda _: None)
    assert not unknown.is_checkpointed


def run(spec: TrainSpec, **options: Any) -> TrainResult:
    return finetune(new_model(), EXAMPLES, spec, device="cpu", **options)


def test_auto_in_a_run_by_its_own_estimate() -> None:
    from autoclave.spec import SftSpec
    from autoclave.training.model_memory import estimate_of_model

    plain, less = (
        estimate_of_model(
            new_model(),
            AUTO,
            SftSpec(),
            longest_row=max(map(len, EXAMPLES)),
            device=torch.device("cpu"),
            checkpointing=checkpointing,
        )
        for checkpointing in (False, True)
    )
    assert plain is not None
    assert less is not None
    assert less.activations < plain.activations
    expected = run(SPEC)
    assert expected.activation_checkpointing is False
    for allowed, on in ((plain.total, False), (plain.total - 1, True), (less.total - 1, False)):
        found = run(AUTO, memory_bytes=allowed)
        assert found.activation_checkpointing is on, allowed
        assert found.losses == expected.losses
    assert run(AUTO).activation_checkpointing is False, "this machine has more memory than that"
    assert run(SPEC, memory_bytes=1).activation_checkpointing is False


def test_free_memory_is_less_than_all() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50


def test_when_memory_runs_out_the_cheaper_way_comes_first() -> None:
    assert is_cheap_to_halve(8192, torch.device("cuda"))
    assert not is_cheap_to_halve(4096, torch.device("cuda"))
    assert is_cheap_to_halve(4096, torch.device("cpu"))
    done: list[str] = []

    def halve() -> bool:
        done.append("halved")
        return len(done) < 3

    activations = ActivationMemory(new_model(), "auto")
    assert activations.do_with_less(halve, cheap_to_halve=True)
    assert (done, activations.is_checkpointed) == (["halved"], False)
    assert activations.do_with_less(halve, cheap_to_halve=False)
    assert (done, activations.is_checkpointed) == (["halved"], True)
    assert activations.do_with_less(halve, cheap_to_halve=False)
    assert not activations.do_with_less(halve, cheap_to_halve=False)


def refused_in(spec: TrainSpec, room: int) -> tuple[list[int], TrainResult]:
    model = new_model()
    memory = Memory(model, room)
    return memory.refused, finetune(model, EXAMPLES, spec, device="cpu")


def test_a_step_that_does_not_fit_is_done_again_with_it_then_in_pieces() -> None:
    refused, result = refused_in(AUTO, LONGEST)
    assert refused[0] == refused[1], "first the same pass with less in it"
    assert result.activation_checkpointing
    assert result.losses == pytest.approx(run(SPEC).losses, rel=1e-6)
    refused, result = refused_in(SPEC, LONGEST)
    assert refused[0] > refused[1]
    assert not result.activation_checkpointing


def test_one_conversation_too_large_says_what_was_not_allowed() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        refused_in(SPEC, 12)
    assert "activation_checkpointing" in str(caught.value)
    with pytest.raises(OutOfMemoryError) as caught:
        refused_in(AUTO, 12)
    assert "activation_checkpointing" not in str(caught.value)


def test_a_resumed_run_goes_on_with_it(tmp_path: Path) -> None:
    seen: list[bool] = []

    def stop(progress: Progress) -> None:
        seen.append(progress.activation_checkpointing)
        if progress.step == 2:
            raise CancelledError

    store = CheckpointStore(tmp_path)
    model = new_model()
    Memory(model, LONGEST)
    with pytest.raises(CancelledError):
        finetune(
            model, EXAMPLES, AUTO, device="cpu", checkpoint=store, checkpoint_every_steps=1, on_progress=stop
        )
    assert seen == [True, True]
    # Another choice is no other run.
    resumed = run(AUTO.model_copy(update={"micro_batch_tokens": 100}), checkpoint=store)
    assert resumed.activation_checkpointing
    assert resumed.losses == pytest.approx(run(SPEC).losses, rel=1e-6)
    assert not run(SPEC, checkpoint=store).activation_checkpointing


def test_fused_jobs() -> None:
    jobs = (DIFFERENT[1], DIFFERENT[3])
    expected = finetune_fused(base(), jobs, device="cpu", activation_checkpointing="off")
    model = base()
    found = finetune_fused(model, jobs, device="cpu", activation_checkpointing="on")
    for one, other in zip(found, expected, strict=True):
        assert one.result.losses == other.result.losses
        assert all(torch.equal(tensor, other.state[name]) for name, tensor in one.state.items())
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_an_architecture_without_layers_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = new_model()
    decoder = model.get_base_model().model
    layers = decoder.layers
    del decoder.layers
    decoder.blocks = layers
    with pytest.raises(ModelError, match="no list of decoder layers"):
        ActivationMemory(model, "on")
    assert not ActivationMemory(model, "auto").do_with_less(lambda: False, cheap_to_halve=False)


@pytest.mark.slow  # importing the compiler takes seconds
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_blocks_are_computed_again() -> None:
    examples = random_examples([9, 14, 5, 20, 11, 8, 17, 6])
    losses = []
    for backend, choice in ((None, "off"), ("aot_eager", "on")):
        model = attach(tiny_model("llama"), LoraSpec(r=4, target_modules="all-linear"), seed=1)
        spec = TrainSpec(n_epochs=2, batch_size=4, packing=True, activation_checkpointing=choice)  # type: ignore[arg-type]
        losses.append(finetune(model, examples, spec, device="cpu", compile_backend=backend).losses)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
