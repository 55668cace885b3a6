"""Two processes train what one trains: every objective and way of cutting, stops, resuming, and no hanging.

The processes are started once, and run all of it (`rank_programs.runs`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoclave.errors import InputError
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.launch import run_ranks
from autoclave.training.loop import TrainResult
from autoclave.training.ranks import joined_ranks
from tests.autoclave.training import rank_programs, test_exact_resume
from tests.autoclave.training.test_exact_resume import Case, Weights

PLAIN = Case("plain")
DROPOUT = Case("dropout")
CASES = [
    PLAIN,
    Case("packing", {"packing": True, "weight_decay": 0.1}),
    Case("accumulation", {"micro_batch_tokens": 64, "schedule": "linear", "max_grad_norm": 0.05}),
    Case(
        "blocks computed again",
        {"packing": True, "micro_batch_tokens": 64, "activation_checkpointing": "on"},
    ),
    # 14 = 4 * 3 + 2 rows, and with 13 to a step the last step has one row: the other rank has none.
    Case("a rank without rows", {"batch_size": 13}),
    *(
        case
        for case in test_exact_resume.CASES
        if case.name in ("packed accumulation", "validation", "early stopping", "lisa", "ldifs")
    ),
]


def attempt(base_dir: Path, case: Case, **more: Any) -> tuple[Weights, TrainResult]:
    return test_exact_resume.attempt(base_dir, case, dropout=0.3 if case is DROPOUT else 0.0, **more)


class Together(NamedTuple):
    found: dict[str, Any]
    folder: Path

    def weights(self, name: str) -> Weights:
        """Those of rank 0, once it is clear that the other has the same bits."""
        first, second = (load_file(self.folder / f"{name}-{rank}") for rank in (0, 1))
        assert all(torch.equal(first[key], tensor) for key, tensor in second.items())
        return first


@pytest.fixture(scope="module")
def together(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("ranks")
    return Together(run_ranks(rank_programs.runs, base_dir, folder, num_processes=2), folder)


def largest_difference(a: Weights, b: Weights) -> float:
    return max(float((a[name] - tensor).abs().max()) for name, tensor in b.items())


def moved(base_dir: Path, weights: Weights) -> float:
    start: dict[str, Tensor] = adapter_state(attach(load_base(base_dir).model, LoraSpec(r=4), seed=1))
    return largest_difference(start, weights)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_losses_and_weights_as_one_process(base_dir: Path, together: Together, case: Case) -> None:
    weights, result = attempt(base_dir, case)
    found = together.found[case.name]
    assert found.losses == pytest.approx(result.losses, rel=0, abs=1e-5)
    # Adam divides by what may be next to nothing: other last bits of a gradient, with other threads, are more
    # of a weight than of a loss.
    assert largest_difference(together.weights(case.name), weights) < 1e-4
    assert moved(base_dir, weights) > 1e-3, "the weights moved by far more than that"
    for name in ("steps", "trained_tokens", "planned_steps", "early_stopped"):
        assert getattr(found, name) == getattr(result, name), name
    assert [step for step, _ in found.evaluations] == [step for step, _ in result.evaluations]
    losses = [loss for _, loss in result.evaluations]
    assert [loss for _, loss in found.evaluations] == pytest.approx(losses, rel=0, abs=1e-5)
    assert found.early_stopped == (case.name == "early stopping")


@pytest.mark.slow
def test_resumed_on_as_many_ranks_with_the_same_bits_and_on_one_too(
    base_dir: Path, together: Together
) -> None:
    whole, broken, stopped, steps = together.found["resume"]
    assert stopped == "CancelledError"
    assert steps == [5, 6, 7, 8], "it goes on after step 4"
    assert broken.losses == whole.losses
    whole_weights = replace_folder(together, "resume/whole").weights("dropout")
    broken_weights = replace_folder(together, "resume/broken").weights("dropout")
    assert all(torch.equal(broken_weights[name], tensor) for name, tensor in whole_weights.items())

    store = CheckpointStore(together.folder / "resume" / "store-for-one")
    _, alone = attempt(base_dir, DROPOUT, checkpoint=store)
    assert alone.losses[:4] == whole.losses[:4]
    assert alone.losses[4:] != whole.losses[4:], "dropout draws otherwise there"
    assert alone.steps == 8


def replace_folder(together: Together, name: str) -> Together:
    return together._replace(folder=together.folder / name)


@pytest.mark.slow
def test_when_one_runs_out_of_memory_all_do_the_step_again(base_dir: Path, together: Together) -> None:
    weights, result = attempt(base_dir, PLAIN)
    found = together.found["memory"]
    assert found.activation_checkpointing, "passes so small are not worth halving"
    assert result.activation_checkpointing is False
    assert found.losses == pytest.approx(result.losses, rel=0, abs=1e-5)
    assert largest_difference(replace_folder(together, "memory").weights("plain"), weights) < 1e-4


OTHER = "OtherRankError: another process of this run failed or was stopped."


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "first", "second"),
    [
        ("cancel", "CancelledError: at the last step", OTHER),
        ("diverges", "NonFiniteLossError: the loss became inf at step 3", None),
        ("fails", OTHER, "ValueError: broken"),
        ("refused", "InputError: Vaccine trains in one process only", None),
        ("damaged", "InputError: the checkpoint in", OTHER),
    ],
)
def test_what_one_rank_raises_ends_all(
    together: Together, scene: str, first: str, second: str | None
) -> None:
    raised = together.found[scene]
    assert raised[0].startswith(first)
    assert raised[1].startswith(second or first)


def test_a_process_of_its_own_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined_ranks("cpu") as ranks:
        assert (ranks.rank, ranks.size, ranks.device) == (0, 1, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for device, message in (("cuda:1", "cannot share cuda:1"), ("cuda", "2 processes need as many GPUs")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        with pytest.raises(InputError, match=message), joined_ranks(device):
            pass
