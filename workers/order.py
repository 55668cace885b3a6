"""Everything a child needs to know about its job, in one file. No database, no credentials.

Times are seconds, paths are on this machine, keys name objects in the storage.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from autoclave.spec import JobSpec, SafetyProfile
from service.jobs.states import Stage

RANK_LOST_EXIT = 44
"""Exit code of a child of whose training processes one was killed or ended by itself."""
OUT_OF_MEMORY_EXIT = 42
"""Exit code of a child that ran out of accelerator memory: its supervisor tries once more with less."""
STORAGE_DOWN_EXIT = 43
"""Exit code of a child that could not read or write the storage: the attempt does not count."""

JUDGE_AWAY_EXIT = 45
"""Exit code of a child whose judge, an endpoint, did not answer: a later attempt goes on."""


class BaseOrder(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    revision: str
    path: str
    sha256: str
    """`autoclave.hashing.folder_sha256` of the folder when the job was created."""
    alignment_method: str
    floor: dict[str, Any] | None = None
    """What the base itself does, as it was measured when it was registered (`measurements.floor`)."""


class FileOrder(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    storage_key: str
    sha256: str


class KeptOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter that another job kept: `service.checkpoints.kept.KeptAdapter`."""

    job_id: str
    checkpoint_id: str | None
    prefix: str
    adapter_sha256: str
    figures: dict[str, Any]


class WaiverOrder(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's word that the adapter may leave although it misses the gate."""

    reason: str
    at: float


class WandbRunOrder(msgspec.Struct, frozen=True, kw_only=True):
    project: str
    name: str | None = None
    entity: str | None = None
    tags: list[str] | None = None


class WandbOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Where the figures go besides the supervisor. No credentials: those are in the environment."""

    mode: str
    """`online`, `offline`, or `disabled`: the server was set up for it when the job was created."""
    folder: str
    runs: list[WandbRunOrder]


class TokenCacheOrder(msgspec.Struct, frozen=True, kw_only=True):
    folder: str
    """Of this worker alone, removed with it; later attempts and jobs on the same data find their tokens."""
    max_bytes: int


class Order(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str
    fencing_number: int
    stage: Stage
    """Where to begin: every stage before it has its completion marker in `stage_outputs`."""
    stage_outputs: dict[str, Any]
    checkpoint: dict[str, Any] | None
    """Newest resume checkpoint of the train stage: {"prefix", "step"}."""
    model_id: str
    """Name of the adapter, should it be released."""
    spec: dict[str, Any]
    safety_profile: dict[str, Any]
    base: BaseOrder
    training_file: FileOrder
    validation_file: FileOrder | None
    storage_url: str
    scratch: str
    """A folder of this attempt alone; removed when it ends."""
    checkpoint_every_seconds: float
    min_examples: int
    max_line_bytes: int
    signing_key_file: str | None = None
    """Private key that signs the package; None: it is not signed."""
    starts_from: KeptOrder | None = None
    """What stands for the train stage of a job that does not train."""
    gate_waived: WaiverOrder | None = None
    wandb: WandbOrder | None = None
    token_cache: TokenCacheOrder | None = None
    attempt: int = 1
    worker: str = ""
    """With `job_id` and `request_id`, what every line of the child's log says."""
    request_id: str | None = None
    micro_batch_divisor: int = 1
    """2 after a first attempt ran out of memory: less at a time, the same effective batch."""
    num_processes: int = 1
    """That train together; 0: one for each GPU."""
    memory_bytes: int = 0
    """Device memory that the job may use; 0: all there is."""

    @property
    def stop_flag(self) -> Path:
        """The child stops at its next step once this file exists."""
        return Path(self.scratch) / "stop"

    def job_spec(self) -> JobSpec:
        spec = JobSpec.model_validate(self.spec)
        tokens = max(64, spec.train.micro_batch_tokens // self.micro_batch_divisor)
        train = spec.train.model_copy(update={"micro_batch_tokens": tokens})
        return spec.model_copy(update={"train": train})

    def profile(self) -> SafetyProfile:
        return SafetyProfile.model_validate(self.safety_profile)


def set_stop_flag(path: Path, *, pause: bool) -> None:
    """Appears with its content at once: a child must not take a pause for a plain stop. `pause`: it may save
    what it has done first; also for a worker that shuts down."""
    partial = path.with_suffix(".partial")
    partial.write_text("pause" if pause else "")
    partial.replace(path)


def is_pause(path: Path) -> bool:
    """Whether the stop flag is set and lets the child save first."""
    try:
        return path.read_text() == "pause"
    except FileNotFoundError:
        return False


def write_order(order: Order, path: Path) -> None:
    """Readable by the owner only: it names a tenant's files."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(order)))


def log_fields(order: Order) -> dict[str, str | int | None]:
    """The same as `order_from_job.log_context`, and who writes."""
    return {
        "job_id": order.job_id,
        "attempt": order.attempt,
        "fencing_number": order.fencing_number,
        "worker": order.worker,
        "request_id": order.request_id,
        "process": "child",
    }


def read_order(path: Path) -> Order:
    return msgspec.json.decode(path.read_bytes(), type=Order)
