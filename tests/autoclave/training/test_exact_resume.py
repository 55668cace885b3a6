"""A run that was killed, anywhere and however often, ends with the bits of one that was not (float32,
CPU)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoclave.defences.ldifs import Ldifs
from autoclave.defences.lisa import Lisa
from autoclave.modelling.adapters import adapter_state, attach
from autoclave.modelling.bases import load_base
from autoclave.progress import Progress
from autoclave.spec import EarlyStopping, LdifsSpec, LisaSpec, LoraSpec, TrainSpec
from autoclave.training import checkpoint as checkpoint_module
from autoclave.training import run as run_module
from autoclave.training.checkpoint import CheckpointStore
from autoclave.training.loop import TrainResult, finetune
from autoclave.training.objective import Objective
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(14, seed=4)
OTHERS = random_examples(7, seed=5)
VALIDATION = random_examples(5, seed=6)
SPEC = TrainSpec(n_epochs=2, batch_size=4, learning_rate=5e-3, seed=3)  # 8 steps, the 4th and 8th smaller
Weights = dict[str, Tensor]


class Killed(BaseException):
    """Stands for the end of a process: no handler of the code under test may catch it."""


@dataclass(frozen=True)
class Case:
    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[], Objective | None] = lambda: None
    validates: bool = False


CASES = [
    Case("plain"),
    Case("packing", {"packing": True}),
    Case("accumulation", {"micro_batch_tokens": 64, "schedule": "linear", "weight_decay": 0.1}),
    Case("packed accumulation", {"packing": True, "micro_batch_tokens": 64}),
    Case("validation", {"evaluations_per_epoch": 2}, validates=True),
    Case(
        "early stopping",
        # No loss falls by a thousand nats: it stops after the third evaluation, and goes back to the best.
        {
            "evaluations_per_epoch": 2,
            "n_epochs": 3,
            "early_stopping": EarlyStopping(patience=2, min_delta=1000.0),
        },
        validates=True,
    ),
    Case("lisa", objective=lambda: Lisa(LisaSpec(alignment_steps=2, finetune_steps=3), OTHERS)),
    Case("ldifs", objective=lambda: Ldifs(LdifsSpec())),
]


def attempt(base_dir: Path, case: Case, *, dropout: float = 0.3, **more: Any) -> tuple[Weights, TrainResult]:
    """In a fresh process, as far as this function can tell: new model, new objective, another generator."""
    torch.manual_seed(random.randrange(2**31))
    model = attach(load_base(base_dir).model, LoraSpec(r=4, lora_dropout=dropout), seed=1)
    options = {"objective": case.objective(), "validation": VALIDATION if case.validates else ()} | more
    result = finetune(model, EXAMPLES, SPEC.model_copy(update=case.changes), device="cpu", **options)
    return {name: tensor.clone() for name, tensor in adapter_state(model).items()}, result


def until_the_end(base_dir: Path, case: Case, **more: Any) -> tuple[Weights, TrainResult, int]:
    """Attempt after attempt; also how many were killed."""
    for num_killed in range(200):
        try:
            return *attempt(base_dir, case, **more), num_killed
        except Killed:
            continue
    raise AssertionError("no attempt came to the end")


def assert_same(broken: tuple[Weights, TrainResult, int], whole: tuple[Weights, TrainResult]) -> None:
    weights, result, _ = broken
    assert all(torch.equal(weights[name], tensor) for name, tensor in whole[0].items())
    for name in ("losses", "steps", "trained_tokens", "evaluations", "early_stopped", "best"):
        assert getattr(result, name) == getattr(whole[1], name), name


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def whole(base_dir: Path, case: Case) -> tuple[Weights, TrainResult]:
    """What an unbroken run ends with."""
    return attempt(base_dir, case)


def test_killed_after_every_step(
    base_dir: Path, tmp_path: Path, case: Case, whole: tuple[Weights, TrainResult]
) -> None:
    def kill(_: Progress) -> None:
        raise Killed

    store = CheckpointStore(tmp_path)
    kill_before_the_end = kill_unless_last(kill, whole[1].steps)
    broken = until_the_end(
        base_dir, case, on_progress=kill_before_the_end, checkpoint=store, checkpoint_every_steps=1
    )
    assert_same(broken, whole)
    assert broken[2] == whole[1].steps - 1, "an attempt took one step"


def kill_unless_last(kill: Callable[[Progress], None], steps: int) -> Callable[[Progress], None]:
    return lambda progress: kill(progress) if progress.step < steps else None


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_in_the_middle_of_steps(
    base_dir: Path,
    tmp_path: Path,
    case: Case,
    whole: tuple[Weights, TrainResult],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the gradient and the step that uses it; checkpoints are as far apart as chance says."""
    rng = random.Random(f"{case.name} {seed}")
    every_steps = rng.randint(1, 3)
    clip = torch.nn.utils.clip_grad_norm_
    # An attempt dies after so many steps; it takes enough of them to reach a checkpoint.
    left = rng.randint(every_steps, every_steps + 3)

    def clip_or_die(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            left = rng.randint(every_steps, every_steps + 3)
            raise Killed
        return clip(*arguments, **more)

    monkeypatch.setattr(run_module.torch.nn.utils, "clip_grad_norm_", clip_or_die)
    store = CheckpointStore(tmp_path)
    broken = until_the_end(base_dir, case, checkpoint=store, checkpoint_every_steps=every_steps)
    assert_same(broken, whole)
    assert broken[2] > 0


FILE_OPERATIONS = [(os, "replace"), (os, "fsync"), (shutil, "rmtree"), (checkpoint_module, "save_file")]


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
def test_killed_at_every_file_operation_of_a_save(
    base_dir: Path, tmp_path: Path, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever lies on the disk then, the next attempt finds a complete checkpoint or none."""
    plain = CASES[0]
    whole = attempt(base_dir, plain)
    countdown = -1

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def operate(*arguments: Any, **more: Any) -> Any:
            nonlocal countdown
            countdown -= 1
            if countdown == 0 and not after:
                raise Killed
            result = function(*arguments, **more)
            if countdown == 0:
                raise Killed
            return result

        return operate

    for module, name in FILE_OPERATIONS:
        monkeypatch.setattr(module, name, dying(getattr(module, name)))
    # The second save has a checkpoint to replace; one save is nine operations.
    for place in range(10, 19):
        store = CheckpointStore(tmp_path / str(place))
        countdown = place
        broken = until_the_end(base_dir, plain, checkpoint=store, checkpoint_every_steps=2)
        assert_same(broken, whole)
        assert broken[2] == 1, place


PROGRAM = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from autoclave.training.checkpoint import CheckpointStore
from tests.autoclave.training.test_exact_resume import CASES, attempt
base_dir, store, out, name = sys.argv[1:]
case = next(case for case in CASES if case.name == name)
say = lambda progress: print(progress.step, flush=True)
weights, _ = attempt(Path(base_dir), case, checkpoint=CheckpointStore(store), checkpoint_every_steps=1,
                     on_progress=say)
save_file(weights, out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["early stopping", "lisa"])
def test_processes_that_are_killed(base_dir: Path, tmp_path: Path, name: str) -> None:
    """`kill -9`, a random moment after the first step of each attempt."""
    case = next(case for case in CASES if case.name == name)
    rng = random.Random(name)
    out = tmp_path / "out.safetensors"
    arguments = [sys.executable, "-c", PROGRAM, str(base_dir), str(tmp_path / "store"), str(out), name]
    num_killed = 0
    first_steps = []
    while not out.exists():
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if line := process.stdout.readline():
                first_steps.append(int(line))
            if num_killed < 2:
                time.sleep(rng.uniform(0, 0.03))
                process.send_signal(signal.SIGKILL)
            code = process.wait(60)
        assert code in (0, -signal.SIGKILL)
        num_killed += code != 0
    assert num_killed == 2
    assert first_steps == sorted(first_steps)
    assert first_steps[-1] > 1, "later attempts went on from a checkpoint"
    whole, _ = attempt(base_dir, case)
    weights = load_file(out)
    assert all(torch.equal(weights[key], tensor) for key, tensor in whole.items())
