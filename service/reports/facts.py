"""What a page says of a job besides its safety report: of the job's own rows, and nothing of a dataset but
its name, size and hash."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.states import Stage
from service.models import Adapter, File, Job
from service.reports.reading import mapping


@dataclass(frozen=True)
class FileFacts:
    id: str
    name: str | None = None
    num_bytes: int | None = None
    num_examples: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class JobFacts:
    """Times are seconds since the epoch."""

    job_id: str
    status: str
    base_id: str
    base_sha256: str
    training_file: FileFacts
    validation_file: FileFacts | None = None
    suffix: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    method: str | None = None
    prepared: Mapping[str, Any] = field(default_factory=dict)
    """What the prepare stage counted in the training file."""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """What the train stage did."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the sanitize stage did to how many entries, and on how many examples."""
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    attempts: int | None = None
    error_code: str | None = None
    model_id: str | None = None
    released: bool = False
    deleted: bool = False
    package_sha256: str | None = None
    signed: bool = False
    cloned_from: str | None = None
    from_checkpoint: str | None = None
    starts_from: Mapping[str, Any] | None = None
    gate_waived: Mapping[str, Any] | None = None


def facts_of(session: Session, job: Job) -> JobFacts:
    adapter = session.scalars(select(Adapter).where(Adapter.job_id == job.id)).one_or_none()
    outputs = mapping(job.stage_outputs)
    validation = None if job.validation_file_id is None else _file(session, job.validation_file_id)
    return JobFacts(
        job_id=job.id,
        status=job.status,
        base_id=job.base_id,
        base_sha256=job.base_sha256,
        training_file=_file(session, job.training_file_id),
        validation_file=validation,
        suffix=job.suffix,
        metadata=mapping(job.user_metadata),
        seed=job.seed,
        spec=mapping(job.spec),
        method=mapping(job.method).get("type"),
        prepared=mapping(outputs.get(Stage.PREPARE.value)),
        trained=mapping(outputs.get(Stage.TRAIN.value)),
        record=mapping(mapping(outputs.get(Stage.SANITIZE.value)).get("record")),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        attempts=job.attempt_count,
        error_code=job.error_code,
        model_id=adapter.model_id if adapter else job.model_id,
        released=adapter is not None,
        deleted=adapter is not None and adapter.deleted_at is not None,
        package_sha256=adapter.sha256 if adapter else None,
        signed=adapter is not None and adapter.signing_public_key is not None,
        cloned_from=job.cloned_from,
        from_checkpoint=job.from_checkpoint,
        starts_from=job.starts_from,
        gate_waived=job.gate_waived,
    )


def _file(session: Session, file_id: str) -> FileFacts:
    row = session.get(File, file_id)
    if row is None:
        return FileFacts(file_id)
    return FileFacts(row.id, row.filename, row.bytes, row.num_examples, row.sha256)
