"""Whether a run computes decoder blocks again in the backward pass (`modelling.checkpointed_blocks`).

It costs one more forward pass, about half of a step, so "auto" does so only where memory demands it: from the
start where the estimate of plain training is more than the device has free and that with it is not; or once
the memory runs out and smaller passes would cost more (`batches.is_cheap_to_halve`), or are not possible.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from autoclave.errors import ModelError
from autoclave.memory import MemoryEstimate
from autoclave.modelling.checkpointed_blocks import CheckpointedBlocks
from autoclave.spec import ActivationCheckpointing

logger = logging.getLogger(__name__)
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Room:
    """Bytes for one process: `free` of the device beside the model that is there already, `allowed` for all
    of it. None: not known, not bounded."""

    free: int | None
    allowed: int | None = None

    def holds(self, estimate: MemoryEstimate) -> bool:
        beside = estimate.total - estimate.base - estimate.adapter
        return (self.free is None or beside <= self.free) and (
            self.allowed is None or estimate.total <= self.allowed
        )


class ActivationMemory:
    """What is chosen for one run, and what became of it. Raises ModelError if blocks are to be computed again
    and the architecture has no list of layers; with "auto" such a model is trained without."""

    def __init__(self, model: Any, choice: ActivationCheckpointing) -> None:
        self._blocks: CheckpointedBlocks | None = None
        if choice == "off":
            return
        try:
            self._blocks = CheckpointedBlocks(model, on=choice == "on")
        except ModelError:
            if choice == "on":
                raise

    @property
    def is_checkpointed(self) -> bool:
        return self._blocks is not None and self._blocks.on

    def installed(self) -> AbstractContextManager[Any]:
        """Around all passes of the run."""
        return nullcontext() if self._blocks is None else self._blocks.installed()

    def choose(self, room: Room, estimate: Callable[[bool], MemoryEstimate | None]) -> None:
        """Before the first step, with the model on its device. `estimate` is asked for training without
        checkpointing and with it, and says None for an architecture that its formula does not know."""
        if self._blocks is None or self._blocks.on:
            return
        plain, checkpointed = estimate(False), estimate(True)
        if plain is None or checkpointed is None or room.holds(plain) or not room.holds(checkpointed):
            return
        logger.info(
            "by estimate training needs %d bytes, more than there are: decoder blocks are computed again in "
            "the backward pass, which needs %d",
            plain.total,
            checkpointed.total,
        )
        self._blocks.on = True

    def go_on(self, was_checkpointed: bool) -> None:
        """As an earlier attempt ended, or another process of this run chose."""
        if self._blocks is not None and was_checkpointed:
            self._blocks.on = True

    def do_with_less(self, halve: Callable[[], bool], *, cheap_to_halve: bool) -> bool:
        """After the memory ran out: the cheapest way to need less. False, and nothing changes, if there is
        none."""
        if cheap_to_halve and halve():
            return True
        if self._blocks is not None and not self._blocks.on:
            self._blocks.on = True
            return True
        return halve()


def free_bytes(device: torch.device) -> int | None:
    """What a process may still take on this device; None where that cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # And what torch's allocator holds and nobody uses.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if not _MEMINFO.exists():
        return None
    available = int(_MEMINFO.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    limit, used = (_number(_CGROUP / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return available
    stat = (_CGROUP / "memory.stat").read_text().split()
    pages = int(stat[stat.index("inactive_file") + 1])  # of files, given back when memory is short
    return max(0, min(available, limit - used + pages))


def _number(file: Path) -> int | None:
    """None where there is no such file, or no limit ("max")."""
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdigit() else None
