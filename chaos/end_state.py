"""Everything that is left after a run, as plain data: rows, stored objects, answers, processes.

Read with SQL, Amazon's client and HTTP, not with the code under test.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import psycopg
from psycopg.rows import dict_row

from chaos import journal
from chaos.journal import Entry
from tests.s3 import s3_client

WEIGHTS = "adapter_model.safetensors"
PREFIX = "chaos/"
"""Of every key in the bucket."""


@dataclass(frozen=True)
class Event:
    message: str
    data: dict[str, Any]


@dataclass(frozen=True)
class JobRow:
    id: str
    project_id: str
    status: str
    stage: str
    fencing: int
    lease_owner: str | None
    error_code: str | None
    key: str | None
    """The Idempotency-Key that its maker sent, kept in its metadata."""
    model_id: str
    finished_stages: frozenset[str]
    gate_passed: bool
    """By its safety report."""
    unsanitised: frozenset[str]
    """SHA-256 of its weights before they were sanitised."""


@dataclass(frozen=True)
class AdapterRow:
    job_id: str
    model_id: str
    storage_key: str
    sha256: str


@dataclass(frozen=True)
class AttemptRow:
    job_id: str
    fencing: int
    exit_reason: str | None


@dataclass(frozen=True)
class StoredObject:
    key: str
    sha256: str
    members: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 by name, of a tar."""


@dataclass(frozen=True)
class Answer:
    """To a try to get at the weights of a job."""

    job_id: str
    route: str
    status: int
    sha256: str | None = None


@dataclass
class EndState:
    jobs: list[JobRow] = field(default_factory=list)
    events: dict[str, list[Event]] = field(default_factory=dict)
    journal: list[Entry] = field(default_factory=list)
    adapters: list[AdapterRow] = field(default_factory=list)
    attempts: list[AttemptRow] = field(default_factory=list)
    objects: list[StoredObject] = field(default_factory=list)
    kept_prefixes: frozenset[str] = frozenset()
    """Where adapters lie that their owners may have sanitised later."""
    answers: list[Answer] = field(default_factory=list)
    acknowledged: dict[str, set[str]] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    """Jobs whose cancel was accepted."""
    processes: list[str] = field(default_factory=list)
    """What still runs although everything was stopped."""
    observed: list[str] = field(default_factory=list)
    """What faults saw that must not happen."""


def read_database(connection: psycopg.Connection[Any], state: EndState) -> None:
    state.journal = journal.read(connection)
    with connection.cursor(row_factory=dict_row) as cursor:
        kept: dict[str, set[str]] = {}
        prefixes = set()
        for row in cursor.execute("SELECT job_id, prefix, adapter_sha256 FROM job_checkpoints"):
            kept.setdefault(row["job_id"], set()).add(row["adapter_sha256"])
            prefixes.add(row["prefix"])
        for row in cursor.execute("SELECT * FROM jobs ORDER BY created_at, id"):
            trained = row["stage_outputs"].get("train") or {}
            if row["error_code"] == "safety_gate_failed":
                prefixes.add(trained["prefix"])
            state.jobs.append(_job(row, kept.get(row["id"], set()) | {trained.get("adapter_sha256", "-")}))
        state.kept_prefixes = frozenset(prefixes)
        for row in cursor.execute("SELECT job_id, message, data FROM job_events ORDER BY job_id, sequence"):
            state.events.setdefault(row["job_id"], []).append(Event(row["message"], row["data"] or {}))
        for row in cursor.execute("SELECT job_id, model_id, storage_key, sha256 FROM adapters"):
            state.adapters.append(AdapterRow(**row))
        for row in cursor.execute("SELECT job_id, fencing_number, exit_reason FROM job_attempts"):
            state.attempts.append(AttemptRow(row["job_id"], row["fencing_number"], row["exit_reason"]))


def _job(row: dict[str, Any], unsanitised: set[str]) -> JobRow:
    report = row["safety_report"] or {}
    return JobRow(
        id=row["id"],
        project_id=row["project_id"],
        status=row["status"],
        stage=row["stage"],
        fencing=row["fencing_number"],
        lease_owner=row["lease_owner"],
        error_code=row["error_code"],
        key=(row["metadata"] or {}).get("key"),
        model_id=row["model_id"],
        finished_stages=frozenset(row["stage_outputs"]),
        gate_passed=(report.get("gate") or {}).get("passed") is True,
        unsanitised=frozenset(unsanitised - {"-"}),
    )


def stored_keys(endpoint: str, bucket: str) -> list[str]:
    with s3_client(endpoint) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        found = [each["Key"] for page in pages for each in page.get("Contents", ())]
        return [key.removeprefix(PREFIX) for key in found]


def read_storage(endpoint: str, bucket: str, state: EndState) -> None:
    """Once nobody writes or deletes any more."""
    with s3_client(endpoint) as client:
        for key in stored_keys(endpoint, bucket):
            content = client.get_object(Bucket=bucket, Key=PREFIX + key)["Body"].read()
            state.objects.append(StoredObject(key, _sha256(content), dict(_members(key, content))))


def _members(key: str, content: bytes) -> Iterator[tuple[str, str]]:
    if not key.endswith(".tar"):
        return
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, _sha256(file.read())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def try_routes(url: str, keys: Mapping[str, str], forge: Any, state: EndState) -> None:
    """Ask for the weights of every job by every route, as its owner. `keys` by project; `forge(job, sha256)`
    makes the token of a link that the service itself would have signed."""
    with httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        for job in state.jobs:
            headers = {"Authorization": f"Bearer {keys[job.project_id]}"}
            path = f"/fine_tuning/jobs/{job.id}/adapter"
            routes = [path, f"{path}/files/{WEIGHTS}", f"/models/{job.model_id}/adapter"]
            for route in routes:
                answer = client.get(route, headers=headers)
                digest = _sha256(answer.content) if answer.status_code == 200 else None
                state.answers.append(Answer(job.id, f"GET {route}", answer.status_code, digest))
            answer = client.post(f"{path}/links", headers=headers, json={"expires_in_seconds": 60})
            state.answers.append(Answer(job.id, f"POST {path}/links", answer.status_code))
            for digest in sorted(job.unsanitised):
                answer = client.get(f"/downloads/{forge(job, digest)}")
                route = f"a signed link to {digest[:8]}"
                state.answers.append(Answer(job.id, route, answer.status_code, _sha256(answer.content)))
