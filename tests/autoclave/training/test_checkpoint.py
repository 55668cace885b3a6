"""The checkpoint store: complete or absent, whatever instant the process died at."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.errors import InputError
from autoclave.spec import TrainSpec
from autoclave.training.checkpoint import STATE_FILE, CheckpointStore, TrainState, run_fingerprint


def state(step: int) -> TrainState:
    tensors = {"adapter.w": torch.full((2, 3), float(step)), "rng.cpu": torch.arange(5, dtype=torch.uint8)}
    return TrainState(step, [0.1 + 0.2, 1 / 3], 7, 1.5, "f" * 64, tensors)


def same(a: TrainState | None, b: TrainState) -> bool:
    return (
        a is not None
        and (a.step, a.losses, a.trained_tokens, a.seconds, a.fingerprint)
        == (b.step, b.losses, b.trained_tokens, b.seconds, b.fingerprint)
        and all(torch.equal(a.tensors[name], b.tensors[name]) for name in b.tensors)
    )


def test_round_trip_keeps_the_newest_and_clear_removes_all(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    assert store.load() is None
    for step in (1, 2, 3):
        store.save(state(step))
    assert same(CheckpointStore(tmp_path / "run").load(), state(3))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["latest"]
    store.clear()
    assert store.load() is None
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("failing_rename", [1, 2])
def test_dying_while_saving_leaves_a_complete_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int
) -> None:
    store = CheckpointStore(tmp_path / "run")
    store.save(state(1))
    real, calls = os.replace, 0

    def dying(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_rename:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            store.save(state(2))
    assert same(store.load(), state(1))
    store.save(state(3))
    assert same(store.load(), state(3))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    store.save(state(1))
    (tmp_path / "run" / "latest" / STATE_FILE).write_text("{")
    with pytest.raises(InputError, match=r"latest cannot be read .*Delete it"):
        store.load()


def test_a_run_begun_before_a_field_existed_is_the_same_run() -> None:
    spec = TrainSpec(n_epochs=2, seed=7)
    later = ("packing", "train_on_inputs", "evaluations_per_epoch", "early_stopping")
    old = spec.model_dump_json(exclude={"micro_batch_tokens", "activation_checkpointing", *later})
    assert run_fingerprint(spec, {}, []) == hashlib.sha256(old.encode()).hexdigest()
    for changed in ({"packing": True}, {"evaluations_per_epoch": 2}, {"seed": 8}):
        other = spec.model_copy(update=changed)
        assert run_fingerprint(other, {}, []) != run_fingerprint(spec, {}, [])


def test_a_checkpoint_of_an_older_version_is_read(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run")
    store.save(state(1))
    file = tmp_path / "run" / "latest" / STATE_FILE
    plain = json.loads(file.read_text())
    assert plain.pop("evaluations") == []
    file.write_text(json.dumps(plain))
    assert same(store.load(), state(1))
