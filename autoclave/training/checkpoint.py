"""Resume checkpoints: everything a killed run needs to end with the same bits as one that was not.

One folder per checkpoint, safetensors and JSON only, complete or absent: it is written beside its
place, flushed to disk and renamed. These hold unsanitised weights and never leave the worker's
private storage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.spec import TrainSpec

# Fields younger than the first checkpoints: left out of a fingerprint while they have their defaults, so
# that a job that was paused before an upgrade goes on after it.
_LATER_FIELDS = ("packing", "train_on_inputs", "evaluations_per_epoch", "early_stopping")
# What changes memory and speed, not the weights.
_WITHOUT_EFFECT = ("micro_batch_tokens", "activation_checkpointing")

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"


@dataclass(frozen=True)
class TrainState:
    """`step` optimiser steps are done. `tensors` holds `adapter.*`, the optimiser's `exp_avg.*` and
    `exp_avg_sq.*` by parameter name, the generators' states `rng.*` (uint8), and with early stopping
    `best.*`: the weights with the lowest validation loss, and what the objective keeps. `evaluations` are
    (step, validation loss). `micro_batch_tokens` is what the memory had room for, `activation_checkpointing`
    whether blocks were computed again. `fingerprint` names the run (data, spec, shapes): a checkpoint of
    another run must not be continued."""

    step: int
    losses: list[float]
    trained_tokens: int
    seconds: float
    fingerprint: str
    tensors: dict[str, Tensor]
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    micro_batch_tokens: int | None = None
    activation_checkpointing: bool = False


class CheckpointStore:
    """Keeps the newest checkpoint under `dir`/latest; while the next one is renamed into place, the one
    before it stays as `dir`/previous, so that at every instant one complete checkpoint exists."""

    def __init__(self, dir: str | Path) -> None:
        self.dir = Path(dir)

    def save(self, state: TrainState) -> None:
        new, latest, previous = self.dir / "new", self.dir / "latest", self.dir / "previous"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        save_file(tensors, new / TENSORS_FILE)
        plain = {f.name: getattr(state, f.name) for f in fields(state) if f.name != "tensors"}
        (new / STATE_FILE).write_text(json.dumps(plain), encoding="utf-8")
        for path in (new / TENSORS_FILE, new / STATE_FILE, new):
            _flush(path)
        if latest.exists():  # else the previous one is all there is: a save died between two renames
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(latest, previous)
        os.replace(new, latest)
        _flush(self.dir)
        shutil.rmtree(previous, ignore_errors=True)

    def load(self) -> TrainState | None:
        """The newest complete checkpoint, or None. Raises InputError if its files are damaged."""
        for folder in (self.dir / "latest", self.dir / "previous"):
            if not folder.is_dir():
                continue
            try:
                plain = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
                plain["evaluations"] = [(step, loss) for step, loss in plain.get("evaluations", [])]
                return TrainState(**plain, tensors=load_file(folder / TENSORS_FILE))
            except (OSError, ValueError, TypeError, SafetensorError) as error:
                raise InputError(
                    f"the checkpoint in {folder} cannot be read ({error}). Delete it to train from the start."
                ) from error
        return None

    def clear(self) -> None:
        """Removes every checkpoint."""
        for name in ("new", "latest", "previous"):
            shutil.rmtree(self.dir / name, ignore_errors=True)


def run_fingerprint(
    spec: TrainSpec, parameters: Mapping[str, Tensor], examples: Iterable[Example], *, objective: bytes = b""
) -> str:
    """Of everything that decides the weights a run ends with, except last bits. `objective` is what the
    objective says of itself (`Objective.identity`)."""
    defaults = TrainSpec()
    unchanged = {name for name in _LATER_FIELDS if getattr(spec, name) == getattr(defaults, name)}
    exclude = {*_WITHOUT_EFFECT, *unchanged}
    digest = hashlib.sha256(spec.model_dump_json(exclude=exclude).encode())
    for name, parameter in parameters.items():
        digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
    for example in examples:
        digest.update(example.input_ids.tobytes())
        digest.update(example.labels.tobytes())
    digest.update(objective)
    return digest.hexdigest()


def generator_states(device: torch.device) -> dict[str, Tensor]:
    """The states of the global generators that dropout on `device` draws from."""
    states = {"rng.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_generators(tensors: dict[str, Tensor], device: torch.device) -> None:
    """A run that moved from CUDA to CPU or back continues, but with other dropout."""
    torch.set_rng_state(tensors["rng.cpu"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
