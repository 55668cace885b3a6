"""`/dashboard/health`: whether every part does its work."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Request
from sqlalchemy import text
from sqlalchemy.orm import Session
from starlette.responses import Response

from service import broker, schema
from service.bases import repository as bases
from service.dashboard.page_route import OperatorPage
from service.dashboard.probing import Probed, Probes
from service.dashboard.queries import health
from service.dashboard.rendering import page
from service.db import Database
from service.deps import DatabaseDep, StorageDep
from service.fleet import repository as fleet
from service.models import BaseRegistration
from service.recent_answers import WINDOW_SECONDS, RecentAnswers
from service.settings import Settings

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

LATE_OUTBOX_SECONDS = 60.0
REGISTRATIONS_SHOWN_SECONDS = 7 * 24 * 3600.0
LITTLE_SPACE = 0.1
"""Share of the disk that is free."""

_probes = Probes()


@dataclass(frozen=True)
class Disk:
    free_bytes: int
    size_bytes: int

    @property
    def is_nearly_full(self) -> bool:
        return self.free_bytes < LITTLE_SPACE * self.size_bytes


@dataclass(frozen=True)
class Stored:
    """What only the database knows."""

    workers: list[fleet.WorkerView]
    num_stuck: int
    outbox: fleet.OutboxView
    last_doorbell_at: float | None
    repeated: health.Repeated
    deliveries: health.Deliveries
    bases: list[health.BaseState]
    registrations: list[BaseRegistration]
    """Of bases: those that have not ended, and those of the last week."""

    @classmethod
    def read(cls, session: Session, *, now: float) -> Stored:
        return cls(
            fleet.workers(session, now=now),
            len(fleet.stuck_jobs(session, now=now)),
            fleet.unsent(session, now=now),
            health.last_doorbell_at(session),
            health.repeated(session, now=now),
            health.deliveries(session, now=now),
            health.bases(session, now=now),
            bases.recent_registrations(session, since=now - REGISTRATIONS_SHOWN_SECONDS),
        )


@router.get("/dashboard/health")
def show_health(request: Request, database: DatabaseDep, storage: StorageDep) -> Response:
    settings: Settings = request.state.settings
    recent: RecentAnswers = request.app.state.recent_answers
    now = time.time()
    storage_wait, broker_wait, database_wait = (
        _probes.start(f"storage {id(storage)}", storage.probe),
        _probes.start(f"broker {settings.broker_url}", lambda: broker.look(settings.broker_url)),
        _probes.start(f"database {id(database)}", lambda: _round_trip(database)),
    )
    with database.snapshot() as session:
        stored = Stored.read(session, now=now)
    in_storage, in_broker, in_database = storage_wait(), broker_wait(), database_wait()
    disk = _disk(settings.storage_url)
    return page(
        request,
        "operator/health.html.j2",
        answers=recent.figures(),
        window_seconds=WINDOW_SECONDS,
        in_storage=in_storage,
        in_broker=in_broker,
        in_database=in_database,
        schema_now=schema.current_revision(database.engine),
        schema_head=schema.head_revision(),
        database_kind={"postgresql": "PostgreSQL", "sqlite": "SQLite"}[database.engine.dialect.name],
        disk=disk,
        storage_kind=urlsplit(settings.storage_url).scheme,
        stored=stored,
        num_silent=sum(
            worker.heartbeat_age_seconds > fleet.STUCK_HEARTBEAT_SECONDS for worker in stored.workers
        ),
        late_outbox_seconds=LATE_OUTBOX_SECONDS,
        problems=_problems(stored, in_storage, in_broker, in_database, disk),
        now=now,
    )


def _problems(
    stored: Stored,
    in_storage: Probed[None],
    in_broker: Probed[broker.BrokerLook],
    in_database: Probed[float],
    disk: Disk | None,
) -> list[str]:
    """What somebody should do something about, in a sentence each."""
    lag = stored.outbox.oldest_age_seconds or 0.0
    said = [
        f"The {part} {probed.problem}."
        for part, probed in (("database", in_database), ("storage", in_storage), ("broker", in_broker))
        if probed.problem is not None
    ]
    if disk is not None and disk.is_nearly_full:
        said.append("The disk of the storage is nearly full.")
    if lag > LATE_OUTBOX_SECONDS:
        said.append("Doorbells are not sent: is a worker running, and does the broker answer?")
    if stored.num_stuck:
        said.append("Jobs are stuck; the page Now lists them.")
    said += [f"Jobs on {base.id} fail with {base.error_code}." for base in stored.bases if base.is_a_problem]
    return said


def _round_trip(database: Database) -> float:
    """Milliseconds of one statement on an open connection."""
    with database.glance() as session:
        session.execute(text("SELECT 1"))
        started = time.perf_counter()
        session.execute(text("SELECT 1"))
        return 1000 * (time.perf_counter() - started)


def _disk(storage_url: str) -> Disk | None:
    """None for a store that is not a folder, or cannot be asked."""
    parts = urlsplit(storage_url)
    if parts.scheme != "file":
        return None
    try:
        usage = shutil.disk_usage(Path(unquote(parts.path)))
    except OSError:
        return None
    return Disk(usage.free, usage.total)
