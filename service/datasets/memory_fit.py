"""Whether training fits on the workers there are: the estimate of its memory beside what they have."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import NamedTuple

from service.datasets.schemas import MemoryByDevice, MemoryFit, WorkerGroup
from service.fleet.usable import AlikeWorkers, UsableWorkers

_GIB = 1024**3


class Reason(StrEnum):
    FITS = "fits"
    TOO_LARGE = "too_large"
    """For every worker that the project may use."""
    UNKNOWN_SIZE = "unknown_size"
    """For none it is known to fit, and some do not say what they have."""
    NO_WORKER = "no_worker"
    WORKER_CLASS = "worker_class"
    """The project is bound to a class of workers of which none is there."""
    NO_ESTIMATE = "no_estimate"


class _Group(NamedTuple):
    device: str
    memory_bytes: int | None
    needed_bytes: int | None
    fits: bool | None


def memory_fit(
    workers: UsableWorkers, memory: MemoryByDevice | None, unavailable: str | None, *, batch_size: int
) -> MemoryFit:
    """`unavailable` says why there is no `memory`. Processes that train together on a machine without GPUs
    share its memory, as the worker counts that takes the job (`workers.stages.prepare`)."""
    counts: Counter[_Group] = Counter()
    best = 0.0
    closest: tuple[int, int] | None = None
    for alike in workers.alike:
        needed, fits = _needed_bytes(alike, memory, batch_size), None
        if needed is not None and alike.memory_bytes is not None:
            fits = needed <= alike.memory_bytes
            if alike.memory_bytes / needed > best:
                best, closest = alike.memory_bytes / needed, (needed, alike.memory_bytes)
        counts[_Group(alike.device, _rounded(alike.memory_bytes), needed, fits)] += alike.number
    number = counts.total()
    num_fitting = sum(count for group, count in counts.items() if group.fits)
    if not counts:
        reason = Reason.WORKER_CLASS if workers.are_others else Reason.NO_WORKER
    elif memory is None:
        reason = Reason.NO_ESTIMATE
    elif num_fitting:
        reason = Reason.FITS
    elif any(group.fits is None for group in counts):
        reason = Reason.UNKNOWN_SIZE
    else:
        reason = Reason.TOO_LARGE
    return MemoryFit(
        fits={Reason.FITS: True, Reason.TOO_LARGE: False}.get(reason),
        reason=reason.value,
        message=_message(reason, number, num_fitting, closest, unavailable),
        num_workers=number,
        num_fitting=num_fitting,
        workers=[
            WorkerGroup(num_workers=count, **group._asdict())
            for group, count in sorted(counts.items(), key=_by_size)
        ],
    )


def _needed_bytes(alike: AlikeWorkers, memory: MemoryByDevice | None, batch_size: int) -> int | None:
    if memory is None:
        return None
    if alike.device == "cuda":
        return memory.cuda.total
    return memory.cpu.total * min(max(alike.num_processes, 1), batch_size)


def _by_size(counted: tuple[_Group, int]) -> tuple[str, int]:
    return counted[0].device, counted[0].memory_bytes or 0


def _rounded(num_bytes: int | None) -> int | None:
    """To three digits: machines of a kind differ by a few pages, and need not be told apart."""
    return None if num_bytes is None else int(float(f"{num_bytes:.3g}"))


def _message(
    reason: Reason, number: int, num_fitting: int, closest: tuple[int, int] | None, unavailable: str | None
) -> str:
    match reason:
        case Reason.FITS:
            return f"Training fits on {num_fitting} of the {number} workers that this project may use now."
        case Reason.TOO_LARGE:
            assert closest is not None, "known to be too large for each"
            needed, there = closest
            return (
                f"Training needs about {needed / _GIB:.3g} GiB of memory, and the best suited worker has "
                f"{there / _GIB:.3g} GiB. Use shorter examples, a lower rank or fewer target modules, or ask "
                "your operator for a larger worker."
            )
        case Reason.UNKNOWN_SIZE:
            return "Of the workers that this project may use now, none that says how much memory it has fits."
        case Reason.NO_WORKER:
            return "No worker of this server is there now."
        case Reason.WORKER_CLASS:
            return "No worker of the class that this project is bound to is there now; ask your operator."
        case Reason.NO_ESTIMATE:
            return f"What training needs is not known: {unavailable or 'there are no token counts.'}"
