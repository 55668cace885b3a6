"""What projects use and may use, and why their jobs failed: one grouped query each, for all at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from service.dashboard.queries.names import ProjectName, names_of_projects
from service.jobs.error_kinds import ErrorKind, error_kind
from service.jobs.states import Status
from service.models import Adapter, ApiKey, File, GpuUsage, Job, Organization, Project, ProjectQuota, Upload
from service.models import UploadPart as Part
from service.quotas.limits import NAMES, Quota
from service.quotas.usage import WAITING, day_of, month_start

FAILURES_SECONDS = 30 * 24 * 3600.0


@dataclass(frozen=True)
class TenantLine:
    """Of one project. Limits are 0 where there is none."""

    project: ProjectName
    quota: Quota
    running: int
    waiting: int
    storage_bytes: int
    gpu_seconds: float
    """This month, with the jobs that run now."""
    key_used_at: float | None
    failures: dict[ErrorKind, int]
    """Of jobs created in the last 30 days."""

    @property
    def num_failures(self) -> int:
        return sum(self.failures.values())


@dataclass(frozen=True)
class Failure:
    error_code: str
    kind: ErrorKind
    number: int
    newest_job_id: str


def all_tenants(session: Session, default: Quota, *, now: float) -> list[TenantLine]:
    """In the order of their names."""
    projects = session.execute(
        select(Project.id, Project.name, Organization.name, Project.organization_id).join(
            Organization, Organization.id == Project.organization_id
        )
    )
    own = {row.project_id: row for row in session.scalars(select(ProjectQuota))}
    live = [Status.RUNNING.value, *WAITING]
    states = select(Job.project_id, Job.status, func.count()).where(Job.status.in_(live))
    counts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for project_id, status, number in session.execute(states.group_by(Job.project_id, Job.status)):
        counts[project_id][status] = number
    stored, seconds = _storage(session), _gpu_seconds(session, now=now)
    used = _by_project(
        session, select(ApiKey.project_id, func.max(ApiKey.last_used_at)).group_by(ApiKey.project_id)
    )
    failures = _failures(session, now=now)
    lines = [
        TenantLine(
            project=ProjectName(*row),
            quota=_quota(own.get(row[0]), default),
            running=counts[row[0]].get(Status.RUNNING.value, 0),
            waiting=sum(counts[row[0]].get(status, 0) for status in WAITING),
            storage_bytes=int(stored.get(row[0], 0)),
            gpu_seconds=seconds.get(row[0], 0.0),
            key_used_at=used.get(row[0]),
            failures=failures.get(row[0], {}),
        )
        for row in projects
    ]
    return sorted(
        lines,
        key=lambda line: (line.project.organization.lower(), line.project.name.lower(), line.project.id),
    )


def _by_project(session: Session, query: Select[str, float | None]) -> dict[str, float]:
    return {project_id: value for project_id, value in session.execute(query) if value is not None}


def _storage(session: Session) -> dict[str, float]:
    """As `service.quotas.usage.storage_bytes`, of every project."""
    total: defaultdict[str, float] = defaultdict(float)
    parts = (
        select(Upload.project_id, func.sum(Part.bytes))
        .join(Part, Part.upload_id == Upload.id)
        .where(Upload.status == "pending")
        .group_by(Upload.project_id)
    )
    stored = [
        select(table.project_id, func.sum(table.bytes))
        .where(table.deleted_at.is_(None))
        .group_by(table.project_id)
        for table in (File, Adapter)
    ]
    for query in (*stored, parts):
        for project_id, num_bytes in _by_project(session, query).items():
            total[project_id] += float(num_bytes)
    return total


def _gpu_seconds(session: Session, *, now: float) -> dict[str, float]:
    """As `service.quotas.usage.gpu_seconds`, of every project."""
    booked = (
        select(GpuUsage.project_id, func.sum(GpuUsage.seconds))
        .where(GpuUsage.day >= day_of(month_start(now)))
        .group_by(GpuUsage.project_id)
    )
    total = defaultdict(float, _by_project(session, booked))
    running = select(Job.project_id, Job.stage_began_at).where(
        Job.status == Status.RUNNING.value, Job.stage_began_at.is_not(None)
    )
    for project_id, began_at in session.execute(running):
        total[project_id] += max(0.0, now - began_at) if began_at is not None else 0.0
    return total


def _failures(session: Session, *, now: float) -> dict[str, dict[ErrorKind, int]]:
    query = (
        select(Job.project_id, Job.error_code, func.count())
        .where(Job.status == Status.FAILED.value, Job.created_at > now - FAILURES_SECONDS)
        .group_by(Job.project_id, Job.error_code)
    )
    found: defaultdict[str, dict[ErrorKind, int]] = defaultdict(dict)
    for project_id, code, number in session.execute(query):
        kind = error_kind(code or "internal_error")
        found[project_id][kind] = found[project_id].get(kind, 0) + number
    return found


def failures(session: Session, *, project_id: str | None, now: float) -> list[Failure]:
    """By error code, the most frequent first. `project_id` None: of all projects."""
    query = select(Job.error_code, func.count(), func.max(Job.created_at)).where(
        Job.status == Status.FAILED.value, Job.created_at > now - FAILURES_SECONDS
    )
    if project_id is not None:
        query = query.where(Job.project_id == project_id)
    rows = sorted(session.execute(query.group_by(Job.error_code)), key=lambda row: (-row[1], row[0] or ""))
    found = []
    for code, number, newest_at in rows:
        newest = select(Job.id).where(
            Job.status == Status.FAILED.value, Job.error_code == code, Job.created_at == newest_at
        )
        if project_id is not None:
            newest = newest.where(Job.project_id == project_id)
        name = code or "internal_error"
        found.append(Failure(name, error_kind(name), number, session.scalar(newest.limit(1)) or ""))
    return found


def _quota(own: ProjectQuota | None, default: Quota) -> Quota:
    if own is None:
        return default
    set_here = {name: getattr(own, name) for name in NAMES}
    return Quota(
        **{name: getattr(default, name) if value is None else value for name, value in set_here.items()}
    )


def find_project(session: Session, project_id: str) -> tuple[ProjectName, float] | None:
    """And when it was created."""
    found = names_of_projects(session, {project_id}).get(project_id)
    if found is None:
        return None
    return found, session.scalars(select(Project.created_at).where(Project.id == project_id)).one()


def own_numbers(session: Session, project_id: str, names: Iterable[str]) -> dict[str, int | None]:
    """What an operator set for the project; None where the default holds."""
    row = session.get(ProjectQuota, project_id)
    return {name: None if row is None else getattr(row, name) for name in names}


def keys_of(session: Session, project_id: str) -> list[ApiKey]:
    """All that there ever were: those that live first, then the newest first."""
    query = select(ApiKey).where(ApiKey.project_id == project_id)
    return list(
        session.scalars(query.order_by(ApiKey.revoked_at.is_not(None), ApiKey.created_at.desc(), ApiKey.id))
    )
