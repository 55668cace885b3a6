"""Builders of rows and datasets, with overrides. Everything else has a sensible value."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import and_, not_, select
from sqlalchemy.orm import Session

from autoclave.spec import JobSpec, SafetyProfile
from service import auth, ids, outbox
from service.catalog import register_base
from service.db import Database
from service.jobs.states import Stage, Status
from service.models import (
    Adapter,
    AdapterFile,
    AlignedBase,
    AuditEntry,
    BaseRegistration,
    CheckpointPermission,
    File,
    Job,
    JobCheckpoint,
    Project,
    ProjectQueue,
    Upload,
    UploadPart,
    Webhook,
)
from service.scheduling import lanes
from service.storage import adapter_key, file_key, private_prefix
from service.webhooks.messages import EVENT_TYPES, new_secret

BASE_ID = "autoclave/test-base"
DATA_SHA256 = hashlib.sha256(b"data").hexdigest()
"""What is read is checked against the sum in its row: where a test stores other bytes, it gives theirs."""


@dataclass(frozen=True)
class Tenant:
    organization_id: str
    project_id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def make_tenant(database: Database, *, name: str = "Tests") -> Tenant:
    now = time.time()
    with database.transaction() as session:
        organization = auth.create_organization(session, name=name, now=now)
        project = auth.create_project(session, organization_id=organization.id, name=name, now=now)
        _, key = auth.create_api_key(session, project_id=project.id, name=name, now=now)
    return Tenant(organization.id, project.id, key)


def make_admin(database: Database, organization_id: str, **overrides: Any) -> dict[str, str]:
    """Headers of a new admin key."""
    values = {"name": "Tests", "now": time.time(), **overrides}
    with database.transaction() as session:
        _, key = auth.create_admin_key(session, organization_id=organization_id, **values)
    return {"Authorization": f"Bearer {key}"}


def make_sibling(database: Database, tenant: Tenant, **overrides: Any) -> Tenant:
    """Another project of the same organization; what is given is for its key."""
    now = time.time()
    with database.transaction() as session:
        project = auth.create_project(
            session, organization_id=tenant.organization_id, name="Sibling", now=now
        )
        values = {"name": "Sibling", "now": now, **overrides}
        _, key = auth.create_api_key(session, project_id=project.id, **values)
    return Tenant(tenant.organization_id, project.id, key)


def make_base(session: Session, **overrides: Any) -> AlignedBase:
    values: dict[str, Any] = {
        "id": BASE_ID,
        "revision": "1",
        "path": "/nowhere/base",
        "sha256": "b" * 64,
        "alignment_method": "sft",
        "default_spec": JobSpec(),
        "safety_profile": SafetyProfile(
            version="1", realign="/nowhere/realign", harmful_eval="/nowhere/eval", judge="refusal"
        ),
        "now": time.time(),
        **overrides,
    }
    return register_base(session, **values)


def make_base_registration(session: Session, organization_id: str, **overrides: Any) -> BaseRegistration:
    values: dict[str, Any] = {
        "id": ids.base_registration_id(),
        "created_by": "adminkey_x",
        "created_at": time.time(),
        "name": "autoclave/another-base",
        "source": "/nowhere/another",
        "profile": None,
        "profile_file": "/nowhere/profile.json",
        "spec": JobSpec().model_dump(mode="json"),
        "status": "queued",
        **overrides,
    }
    registration = BaseRegistration(organization_id=organization_id, **values)
    session.add(registration)
    session.flush()
    return registration


def make_file(session: Session, project_id: str, **overrides: Any) -> File:
    """A row only; use the API to store bytes as well."""
    id = overrides.pop("id", ids.file_id())
    values: dict[str, Any] = {
        "filename": "train.jsonl",
        "purpose": "fine-tune",
        "bytes": 100,
        "sha256": ids.file_id(),
        "storage_key": file_key(id),
        "status": "processed",
        "num_examples": 10,
        "created_at": time.time(),
        **overrides,
    }
    file = File(id=id, project_id=project_id, **values)
    session.add(file)
    session.flush()
    return file


def make_upload(session: Session, project_id: str, **overrides: Any) -> Upload:
    now = time.time()
    values: dict[str, Any] = {
        "id": ids.upload_id(),
        "filename": "train.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "fine-tune",
        "bytes": 100,
        "status": "pending",
        "created_at": now,
        "expires_at": now + 3600,
        **overrides,
    }
    upload = Upload(project_id=project_id, **values)
    session.add(upload)
    session.flush()
    return upload


def make_part(session: Session, upload: Upload, **overrides: Any) -> UploadPart:
    """A row only; its bytes belong under `storage.part_key`."""
    values: dict[str, Any] = {
        "id": ids.part_id(),
        "bytes": 4,
        "sha256": DATA_SHA256,
        "created_at": time.time(),
        **overrides,
    }
    part = UploadPart(upload_id=upload.id, **values)
    session.add(part)
    session.flush()
    return part


def make_job(session: Session, project_id: str, **overrides: Any) -> Job:
    """A job in any state, without an outbox message. The base is made if there is none."""
    project = session.get_one(Project, project_id)
    base_id = overrides.pop("base_id", BASE_ID)
    base = session.get(AlignedBase, base_id) or make_base(session, id=base_id)
    now = time.time()
    hyperparameters = {"n_epochs": 3, "batch_size": 16, "learning_rate_multiplier": 1.0}
    values: dict[str, Any] = {
        "id": ids.job_id(),
        "organization_id": project.organization_id,
        "base_sha256": base.sha256,
        "validation_file_id": None,
        "suffix": None,
        "seed": 0,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "hyperparameters": hyperparameters,
        "spec": base.default_spec,
        "safety_profile": base.safety_profile,
        "user_metadata": None,
        "created_at": now,
        "status": Status.QUEUED.value,
        "stage": Stage.PREPARE.value,
        **overrides,
    }
    if "training_file_id" not in values:
        values["training_file_id"] = make_file(session, project_id).id
    if values["status"] == Status.QUEUED.value:
        values.setdefault("queued_at", values["created_at"])
    job = Job(project_id=project_id, base_id=base_id, **values)
    session.add(job)
    session.flush()
    lanes.refresh(session, project_id, now=now)
    return job


def limit_running(session: Session, project_id: str, limit: int) -> None:
    """The project's queue as it is after a claim that saw this quota of jobs that run at once."""
    session.get_one(ProjectQueue, project_id).running_limit = limit
    session.flush()


def make_queued_job(session: Session, project_id: str, **overrides: Any) -> Job:
    """As the API leaves it: queued, with its doorbell in the outbox."""
    job = make_job(session, project_id, **overrides)
    outbox.enqueue(session, job.id, now=job.created_at)
    session.refresh(job)
    return job


def make_checkpoint(session: Session, job: Job, *, step: int = 6, **overrides: Any) -> JobCheckpoint:
    """A row only; its bytes belong below its `prefix`."""
    values: dict[str, Any] = {
        "id": ids.checkpoint_id(),
        "created_at": time.time(),
        "model_id": f"ft:{job.base_id}:{job.organization_id}::abcdefgh:ckpt-step-{step}",
        "metrics": {"step": step, "train_loss": 0.5},
        "prefix": f"{private_prefix(job.id)}/1/train-kept-{step}",
        "adapter_sha256": "e" * 64,
        "figures": {"steps": step, "trained_tokens": 100 * step},
        **overrides,
    }
    checkpoint = JobCheckpoint(job_id=job.id, step_number=step, **values)
    session.add(checkpoint)
    session.flush()
    return checkpoint


def make_adapter(session: Session, job: Job, **overrides: Any) -> Adapter:
    values: dict[str, Any] = {
        "model_id": ids.fine_tuned_model_id(job.base_id, job.organization_id, job.suffix),
        "storage_key": adapter_key(job.id, 1),
        "bytes": 4,
        "sha256": DATA_SHA256,
        "created_at": time.time(),
        **overrides,
    }
    adapter = Adapter(
        job_id=job.id,
        project_id=job.project_id,
        organization_id=job.organization_id,
        base_id=job.base_id,
        **values,
    )
    session.add(adapter)
    session.flush()
    return adapter


def make_webhook(session: Session, project_id: str, **overrides: Any) -> Webhook:
    values: dict[str, Any] = {
        "id": ids.webhook_id(),
        "organization_id": session.get_one(Project, project_id).organization_id,
        "name": None,
        "url": "https://hooks.example.com/",
        "events": list(EVENT_TYPES),
        "secret": new_secret(),
        "old_secrets": [],
        "enabled": True,
        "created_at": time.time(),
        **overrides,
    }
    webhook = Webhook(project_id=project_id, **values)
    session.add(webhook)
    session.flush()
    return webhook


def make_adapter_file(session: Session, adapter: Adapter, **overrides: Any) -> AdapterFile:
    """A file that is the whole of what lies under the adapter's key."""
    values: dict[str, Any] = {
        "name": "adapter_model.safetensors",
        "bytes": adapter.bytes,
        "sha256": adapter.sha256,
        "offset": 0,
        **overrides,
    }
    file = AdapterFile(model_id=adapter.model_id, **values)
    session.add(file)
    session.flush()
    return file


def make_permission(session: Session, adapter: Adapter, project_id: str) -> CheckpointPermission:
    permission = CheckpointPermission(
        id=ids.permission_id(), model_id=adapter.model_id, project_id=project_id, created_at=time.time()
    )
    session.add(permission)
    session.flush()
    return permission


def get_job(database: Database, job_id: str) -> Job:
    with database.snapshot() as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def chat_line(question: str = "ping", answer: str = "pong", **extra: Any) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **extra})


def dataset(num_examples: int = 10, *, tag: str = "") -> bytes:
    """Valid chat JSONL; another `tag` makes other bytes."""
    return "".join(
        chat_line(f"question {tag} {i}", f"answer {i}") + "\n" for i in range(num_examples)
    ).encode()


_BUILDING = ("organization.created", "project.created", "api_key.created", "base.registered")


def audit_entries(session: Session) -> list[AuditEntry]:
    """In order, without those of building what a test starts from."""
    query = select(AuditEntry).where(
        not_(and_(AuditEntry.actor == "system", AuditEntry.action.in_(_BUILDING)))
    )
    return list(session.scalars(query.order_by(AuditEntry.sequence)))
