"""/v1/fine_tuning/validate, /preview, /estimate: a dataset looked at before a job is made.

They are work for a processor, so few run at a time (`inspection_threads`), whatever the number of clients.
"""

from __future__ import annotations

from functools import partial

from anyio import to_thread
from fastapi import APIRouter, Request

from service.datasets import repository, service, sources
from service.datasets.schemas import Estimate, Preview, PreviewRequest, ValidateRequest, ValidationReport
from service.db import Database
from service.deps import AuthenticatedRoute, CallerDep, DatabaseDep, StorageDep
from service.files.service import UploadLimits
from service.fleet.usable import usable_workers
from service.jobs.creation import resolved_spec
from service.jobs.requests import CreateJob
from service.storage import Storage

router = APIRouter(prefix="/fine_tuning", tags=["datasets"], route_class=AuthenticatedRoute)


@router.post("/validate")
async def validate_dataset(
    request: Request, body: ValidateRequest, database: DatabaseDep, storage: StorageDep, caller: CallerDep
) -> ValidationReport:
    """Every broken rule with its line and what to do; duplicates, overlap, lengths. Broken data is no error
    here: the answer is 200 with `valid` false."""
    work = partial(_validate, body, database, storage, caller.project_id, _limits(request))
    return await to_thread.run_sync(work, limiter=request.state.inspection_threads)


@router.post("/preview")
async def preview_dataset(
    request: Request, body: PreviewRequest, database: DatabaseDep, storage: StorageDep, caller: CallerDep
) -> Preview:
    """Conversations as the model will see them, and which part of them is trained."""
    work = partial(_preview, body, database, storage, caller.project_id, _limits(request))
    return await to_thread.run_sync(work, limiter=request.state.inspection_threads)


@router.post("/estimate")
async def estimate_job(
    request: Request, body: CreateJob, database: DatabaseDep, storage: StorageDep, caller: CallerDep
) -> Estimate:
    """What a job with this request would take; the body is that of creating it."""
    work = partial(_estimate, body, database, storage, caller.project_id, _limits(request))
    return await to_thread.run_sync(work, limiter=request.state.inspection_threads)


def _limits(request: Request) -> UploadLimits:
    settings = request.state.settings
    return UploadLimits(
        max_file_bytes=settings.max_file_bytes,
        max_line_bytes=settings.max_line_bytes,
        min_examples=settings.min_examples,
    )


def _validate(
    body: ValidateRequest, database: Database, storage: Storage, project_id: str, limits: UploadLimits
) -> ValidationReport:
    training = validation = None
    with database.snapshot() as session:
        base = None if body.model is None else sources.find_base(session, body.model)
        train = sources.train_spec(base, body.training)
        if body.training_file is not None:
            training = sources.find_file(session, project_id, body.training_file, param="training_file")
        if body.validation_file is not None:
            validation = sources.find_file(session, project_id, body.validation_file, param="validation_file")
    # JSON strings can hold half of a surrogate pair; as bytes that is broken UTF-8, which has a name.
    content = (body.content or "").encode("utf-8", "surrogatepass")
    return service.validate(
        [content] if training is None else sources.chunks_of(storage, training, param="training_file"),
        None if validation is None else sources.chunks_of(storage, validation, param="validation_file"),
        base=base,
        train=train,
        limits=limits,
    )


def _preview(
    body: PreviewRequest, database: Database, storage: Storage, project_id: str, limits: UploadLimits
) -> Preview:
    with database.snapshot() as session:
        base = sources.find_base(session, body.model)
        train = sources.train_spec(base, body.training)
        file = sources.find_file(session, project_id, body.training_file, param="training_file")
    rows = service.preview(
        sources.chunks_of(storage, file, param="training_file"),
        body,
        base=base,
        train=train,
        max_line_bytes=limits.max_line_bytes,
    )
    return Preview(
        model=base.id,
        training_file=file.id,
        max_seq_length=train.max_seq_length,
        data=rows,
    )


def _estimate(
    body: CreateJob, database: Database, storage: Storage, project_id: str, limits: UploadLimits
) -> Estimate:
    now = database.now()
    with database.snapshot() as session:
        base = sources.find_base(session, body.model)
        spec = resolved_spec(
            body,
            base.default_spec,
            seed=body.seed or 0,
            longest=base.longest_sequence,
            not_here=base.no_defences,
        )
        file = sources.find_file(session, project_id, body.training_file, param="training_file")
        if body.validation_file is not None:
            sources.find_file(session, project_id, body.validation_file, param="validation_file")
        speeds = repository.measured_seconds_per_token(session, base.id, base.sha256)
        workers = usable_workers(session, project_id, now=now)
    return service.estimate(
        sources.chunks_of(storage, file, param="training_file"),
        file_id=file.id,
        base=base,
        spec=spec,
        seconds_per_token=speeds,
        workers=workers,
        limits=limits,
    )
