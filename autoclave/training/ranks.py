"""Several processes that train one adapter together: who does what, and how they agree.

Every rank holds the whole model, the whole data and the same optimiser. Of each step it computes its share of
the examples; the gradients are added in one all-reduce, and each rank then takes the same step with the same
numbers (docs/decisions/0025). Rank 0 alone writes. Started by `torchrun` or by `training/launch.py`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import InputError, OtherRankError
from autoclave.training.batches import shares
from autoclave.training.checkpoint import TrainState
from autoclave.training.micro_batches import is_out_of_memory
from autoclave.training.rank_environment import STORE_FILE, local_rank_of, rank_of, size_of

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. One that dies is noticed at once (its connections break, and whoever
started it ends the others); this is for one that hangs, and outlasts the slowest upload of a checkpoint."""


_FINE, _OUT_OF_MEMORY, _FAILED = range(3)


class Ranks:
    """This process among those of its run. `device` is this rank's own. With size 1 nothing here does
    anything: a run in one process is computed as if there were none of this."""

    def __init__(self, rank: int = 0, size: int = 1, *, device: str = "cpu") -> None:
        assert 0 <= rank < size, (rank, size)
        self.rank, self.size, self.device = rank, size, device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """What this rank computes of a step; may be empty. The shares of all ranks are the step."""
        if self.size == 1:
            return examples
        return [examples[i] for i in shares([len(example) for example in examples], self.size)[self.rank]]

    @contextmanager
    def together(self) -> Iterator[None]:
        """All ranks leave this block, or none: where it raises on one, that one raises its own error and the
        others OtherRankError; where one ran out of memory, and nothing worse happened, all raise
        torch.OutOfMemoryError, so that they can try again together. Nothing inside it may wait for another
        rank."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            with suppress(OtherRankError):
                self._worst(_OUT_OF_MEMORY if is_out_of_memory(error) else _FAILED)
            raise
        worst = self._worst(_FINE)
        if worst == _OUT_OF_MEMORY:
            raise torch.OutOfMemoryError("another process of this run ran out of memory.")
        if worst != _FINE:
            raise OtherRankError

    def add_up(self, parameters: Iterable[Tensor], figures: Tensor) -> Tensor:
        """Makes `grad` of the parameters the sum over all ranks; a parameter without one counts as zero.
        Returns the sums of `figures` (N,). One all-reduce; the same bits on every rank."""
        if self.size == 1:
            return figures
        parameters = list(parameters)
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        bucket = torch.cat([part.reshape(-1) for part in parts] + [figures])  # (G + N,)
        with _broken_connections():
            dist.all_reduce(bucket)
        sizes = [part.numel() for part in parts] + [len(figures)]
        *sums, figures = torch.split(bucket, sizes)
        for parameter, flat in zip(parameters, sums, strict=True):
            parameter.grad = flat.view_as(parameter).to(parameter.dtype)
        return figures

    def totals(self, *numbers: float) -> list[float]:
        """Their sums over all ranks, in float64."""
        if self.size == 1:
            return list(numbers)
        values = torch.tensor(numbers, dtype=torch.float64)
        with _broken_connections():
            dist.all_reduce(values)
        sums: list[float] = values.tolist()
        return sums

    def start_alike(self, tensors: Iterable[Tensor]) -> None:
        """Copies those of rank 0 to the others."""
        if self.size == 1:
            return
        for tensor in tensors:
            with _broken_connections():
                dist.broadcast(tensor.detach(), src=0)

    def from_first(self, state: TrainState | None) -> TrainState | None:
        """The checkpoint that rank 0 found, for all of them, on the CPU. Others may give anything."""
        if self.size == 1:
            return state
        found = state if self.is_first else None
        plain: dict[str, Any] | None = None
        if found is not None:
            shapes = {name: [str(t.dtype), list(t.shape)] for name, t in found.tensors.items()}
            plain = {"state": asdict(replace(found, tensors={})), "tensors": shapes}
        plain = json.loads(self._bytes_of_first(json.dumps(plain).encode()))
        if plain is None:
            return None
        tensors = {}
        for name, (dtype, shape) in plain["tensors"].items():
            if found is not None:
                tensors[name] = found.tensors[name].cpu().contiguous()
            else:
                tensors[name] = torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
        self.start_alike(tensors.values())
        evaluations = [(step, loss) for step, loss in plain["state"]["evaluations"]]
        return TrainState(**plain["state"] | {"tensors": tensors, "evaluations": evaluations})

    def seed_step(self, seed: int, step: int) -> None:
        """Before each step dropout starts from (seed, step, rank) alone, so that a resumed run needs no other
        rank's generator. One process keeps the stream that `seed` began."""
        if self.size > 1:
            torch.manual_seed((seed * 1_000_003 + step) * 1_009 + self.rank)

    def any(self, mine: bool) -> bool:
        """Whether any rank says so."""
        return mine if self.size == 1 else bool(self._worst(int(mine)))

    def _worst(self, mine: int) -> int:
        value = torch.tensor(mine)
        with _broken_connections():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value.item())

    def _bytes_of_first(self, content: bytes) -> bytes:
        length = torch.tensor(len(content))
        self.start_alike([length])
        data = torch.zeros(int(length.item()), dtype=torch.uint8)
        if self.is_first:
            data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        self.start_alike([data])
        return data.numpy().tobytes()


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """The place of this process by torchrun's environment variables, connected to the others while the block
    lasts; alone where they are not set. CUDA tensors go over NCCL, the rest over gloo.

    Raises InputError for more processes than GPUs, or if `device` names one GPU for several processes.
    """
    size = size_of(os.environ)
    if size == 1:
        yield Ranks(device=device)
        return
    rank, local_rank, local_size = rank_of(os.environ), *local_rank_of(os.environ)
    if device.startswith("cuda"):
        own = _own_gpu(device, local_rank, local_size)
        torch.cuda.set_device(own)
        device, backend = own, "cpu:gloo,cuda:nccl"
    else:
        backend = "gloo"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // local_size))
    store = os.environ.get(STORE_FILE)
    where: dict[str, Any] = {} if store is None else {"store": dist.FileStore(store, size)}  # type: ignore[attr-defined]
    with _broken_connections():
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT, **where)
    yield Ranks(rank, size, device=device)
    # Not after an error: what another rank still waits for is ended by the end of this process.
    dist.destroy_process_group()


def _own_gpu(device: str, local_rank: int, local_size: int) -> str:
    if ":" in device:
        raise InputError(f"{local_size} processes cannot share {device}: give cuda, each takes its own GPU.")
    num_gpus = torch.cuda.device_count()
    if local_size > num_gpus:
        raise InputError(
            f"{local_size} processes need as many GPUs, and {num_gpus} are visible. Start fewer processes, "
            "or give the device cpu."
        )
    return f"cuda:{local_rank}"


@contextmanager
def _broken_connections() -> Iterator[None]:
    """Whatever the backend says of a peer that is gone."""
    try:
        yield
    except RuntimeError as error:
        raise OtherRankError from error
