"""Packed training takes the same steps as padded training, whatever the architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from autoclave.data.tokens import IGNORED, Example, collate, pack
from autoclave.errors import CancelledError, InputError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.progress import Progress
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.batches import step_batches
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.loop import TrainResult, finetune
from autoclave.training.loss import Summed, causal_loss, packed_causal_loss
from autoclave.training.objective import Supervised
from tests.autoclave.tiny_architectures import ALL_ARCHITECTURES, tiny_model
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(14, seed=4)
SPEC = TrainSpec(n_epochs=3, batch_size=4, learning_rate=5e-3, seed=3)
PACKED = SPEC.model_copy(update={"packing": True})


def adapted(architecture: str) -> Any:
    model = tiny_model(architecture)
    for module in model.modules():
        if isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0  # OPT's own; what it draws depends on the shape of a batch
    return attach(model, LoraSpec(r=4, target_modules="all-linear"), seed=1)


def train(architecture: str, spec: TrainSpec) -> tuple[dict[str, Tensor], TrainResult]:
    model = adapted(architecture)
    result = finetune(model, EXAMPLES, spec, device="cpu")
    return adapter_state(model), result


@pytest.mark.parametrize("architecture", ALL_ARCHITECTURES)
def test_losses_and_weights_are_those_of_padded_training(architecture: str) -> None:
    padded, a = train(architecture, SPEC)
    packed, b = train(architecture, PACKED)
    assert len(b.losses) == 12
    assert b.losses == pytest.approx(a.losses, rel=1e-5)
    assert b.trained_tokens == a.trained_tokens
    for name, tensor in padded.items():
        torch.testing.assert_close(packed[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_gradients_are_those_of_each_example_alone(architecture: str) -> None:
    model = adapted(architecture).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # else it is 0 and hides the gradient of lora_A
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    objective = packed_causal_loss(model, device="cpu")
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, count, num_right = objective(model, pack(EXAMPLES))
    found = torch.autograd.grad(total, parameters)
    alone = [causal_loss(model, collate([example], pad_token_id=0)) for example in EXAMPLES]
    assert count == sum(summed.num_tokens for summed in alone)
    assert int(num_right) == sum(int(summed.num_right) for summed in alone)
    expected_total = torch.stack([summed.loss for summed in alone]).sum()
    assert total.item() == pytest.approx(expected_total.item(), rel=1e-6)
    for a, b in zip(found, torch.autograd.grad(expected_total, parameters), strict=True):
        # Norm layers compute in float32 whatever the model's type.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_a_packed_row_holds_every_input_and_every_label() -> None:
    first = Example(np.array([1, 2, 3], np.int32), np.array([IGNORED, 2, 3], np.int32))
    second = Example(np.array([4, 5], np.int32), np.array([4, 5], np.int32))
    batch = pack([first, second])
    assert batch.input_ids.tolist() == [[1, 2, 4, 0]]
    assert batch.labels.tolist() == [[IGNORED, 2, 3, 5]], "a first token is never predicted"
    assert batch.packed_lengths == (2, 1)


def test_a_step_is_cut_into_rows_of_bounded_length() -> None:
    batches = list(step_batches(EXAMPLES, max_tokens=64, packing=True, device=torch.device("cpu")))
    lengths = [length for batch in batches for length in batch.packed_lengths or ()]
    assert sorted(lengths) == sorted(len(example) - 1 for example in EXAMPLES)
    assert all(batch.input_ids.shape == (1, sum(batch.packed_lengths or ()) + 1) for batch in batches)
    assert all(sum(batch.packed_lengths or ()) <= 64 for batch in batches)
    assert 1 < len(batches) < len(EXAMPLES) / 2


def test_a_resumed_packed_run_ends_with_the_same_bits(base_dir: Path, tmp_path: Path) -> None:
    def run(**more: Any) -> tuple[dict[str, Tensor], TrainResult]:
        model = attach(load_base(base_dir).model, LoraSpec(r=4, lora_dropout=0.3), seed=1)
        result = finetune(model, EXAMPLES, PACKED, device="cpu", **more)
        return adapter_state(model), result

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise CancelledError

    unbroken, expected = run()
    options: dict[str, Any] = {
        "checkpoint": CheckpointStore(tmp_path / "run"),
        "checkpoint_every_steps": 1,
    }
    with pytest.raises(CancelledError):
        run(on_progress=stop, **options)
    resumed, result = run(**options)
    assert result.losses == expected.losses
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_another_objective_cannot_be_packed() -> None:
    def token_loss(model: Any, batch: Any) -> Summed:
        return causal_loss(model, batch)

    with pytest.raises(InputError, match="packing"):
        finetune(adapted("llama"), EXAMPLES, PACKED, device="cpu", objective=Supervised(token_loss))
