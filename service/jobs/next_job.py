"""What an idle worker asks for: the job whose turn it is.

On PostgreSQL that is a single statement, a transaction by itself (`claiming.claim_at_once`): sent one
by one, the parts of a claim cost twice the processor time. Where the statement found the project's row
outdated it is asked again; where no project's row was free, or the first job was just being cancelled, the
parts are run one by one in a transaction (`lease.claim_next`), which can wait. So they always
are on SQLite.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from service import ids
from service.db import Database
from service.jobs import claiming, lease
from service.jobs.lease import Claim
from service.quotas.limits import Quota
from service.scheduling import policy
from service.scheduling.workers import Kind

MOST_OUTDATED = 8


def take_next(
    database: Database,
    *,
    owner: str,
    ttl_seconds: float,
    max_attempts: int,
    now: float,
    kind: Kind | None = None,
    default_quota: Quota | None = None,
) -> Claim | None:
    """Commits; None if there is no job for this kind of worker."""
    kind, default = kind or Kind(), default_quota or Quota()
    if database.is_postgresql:
        with database.statements() as session:
            taken = _at_once(
                session,
                kind,
                default,
                max_attempts,
                lease.taking(owner=owner, ttl_seconds=ttl_seconds, now=now),
            )
            if taken is not None:
                return taken
            # Also projects whose row is locked; most often there is none.
            turn = policy.next_project(
                session, kind, default=default, max_attempts=max_attempts, tried=(), waits=True
            )
            if turn is None:
                return None
    with database.transaction() as session:
        return lease.claim_next(
            session,
            owner=owner,
            ttl_seconds=ttl_seconds,
            max_attempts=max_attempts,
            now=now,
            kind=kind,
            default_quota=default,
        )


def _at_once(
    session: Session, kind: Kind, default: Quota, max_attempts: int, taking: dict[str, object]
) -> Claim | None:
    statement = claiming.claim_at_once(sized=kind.memory_bytes > 0)
    values = policy.turn_parameters(kind, default=default, max_attempts=max_attempts) | taking
    for _ in range(MOST_OUTDATED):
        row = session.connection().execute(statement, values | {"event_id": ids.event_id()}).first()
        if row is None:
            return None
        if row.id is not None:
            return lease.claim_of(row)
        if not row.outdated:
            return None
    return None
