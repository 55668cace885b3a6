"""The same loss curve as transformers.Trainer on unpacked data: another's loop, another's loss, 50 steps."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, SequentialSampler
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

from autoclave.data.tokens import IGNORED, Example
from autoclave.modelling.adapters import attach
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.batches import ShuffledSteps
from autoclave.training.loop import finetune
from tests.autoclave.tiny import tiny_config
from tests.autoclave.training.test_loss import random_examples

SPEC = TrainSpec(n_epochs=10, batch_size=4, learning_rate=1e-3, schedule="linear", warmup_ratio=0.0, seed=3)
EXAMPLES = random_examples(20, seed=9)


def adapted() -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).requires_grad_(False).eval()
    return attach(model, LoraSpec(r=16, target_modules="all-linear"), seed=1)


class InOrder(Dataset[Example]):
    """The examples of every step in the order of our loop."""

    def __init__(self) -> None:
        steps = ShuffledSteps(len(EXAMPLES), batch_size=4, n_epochs=SPEC.n_epochs, seed=SPEC.seed)
        self.rows = [EXAMPLES[i] for step in range(steps.total_steps) for i in steps.at(step)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        return self.rows[index]


def padded(examples: list[Example]) -> dict[str, torch.Tensor]:
    longest = max(map(len, examples))

    def stacked(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    return {
        "input_ids": stacked([example.input_ids.tolist() for example in examples], 0),
        "attention_mask": stacked([[1] * len(example) for example in examples], 0),
        "labels": stacked([example.labels.tolist() for example in examples], IGNORED),
    }


class InOrderTrainer(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *_: Any) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)


def trainer_losses(folder: Path) -> list[float]:
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        learning_rate=SPEC.learning_rate,
        lr_scheduler_type="linear",
        weight_decay=SPEC.weight_decay,
        max_grad_norm=SPEC.max_grad_norm,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        remove_unused_columns=False,
    )
    trainer = InOrderTrainer(adapted(), arguments, data_collator=padded, train_dataset=InOrder())
    losses: list[float] = []
    step = trainer.training_step

    def recorded(*inputs: Any, **more: Any) -> torch.Tensor:
        loss: torch.Tensor = step(*inputs, **more)
        losses.append(loss.item())  # what is logged is rounded
        return loss

    trainer.training_step = recorded
    trainer.train()
    return losses


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_curve_is_that_of_the_trainer(packing: bool, tmp_path: Path) -> None:
    result = finetune(adapted(), EXAMPLES, SPEC.model_copy(update={"packing": packing}), device="cpu")
    expected = trainer_losses(tmp_path)
    assert len(expected) == 50
    assert result.losses == pytest.approx(expected, rel=0, abs=1e-5)
    assert result.losses[-1] < result.losses[0] - 0.3, "it learned something"
