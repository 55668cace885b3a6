"""What the database itself remembers of every write: triggers, so that no code under test is trusted.

Every process of the run names itself (PGAPPNAME, with a number for each start), so the journal says who wrote
what under which fencing number. A change of state is also told at once to whoever listens (NOTIFY).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import psycopg

CHANNEL = "chaos"

# `fencing`, `status` and `stage` are those of the job's row after the write; of a write to another table,
# those of the job at that moment. Renewing the bell is no write of a worker about its job.
_SQL = """
CREATE TABLE chaos_journal (
    sequence bigserial PRIMARY KEY,
    at double precision NOT NULL DEFAULT extract(epoch FROM clock_timestamp()),
    transaction bigint NOT NULL DEFAULT txid_current(),
    app text NOT NULL DEFAULT current_setting('application_name'),
    source text NOT NULL,
    job_id text NOT NULL,
    old_status text, old_stage text, old_fencing bigint,
    status text, stage text, fencing bigint
);
CREATE INDEX ON chaos_journal (job_id, sequence);

CREATE FUNCTION chaos_job() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO chaos_journal (source, job_id, status, stage, fencing)
        VALUES ('jobs', NEW.id, NEW.status, NEW.stage, NEW.fencing_number);
    ELSE
        IF to_jsonb(NEW) - 'rung_at' = to_jsonb(OLD) - 'rung_at' THEN RETURN NULL; END IF;
        INSERT INTO chaos_journal
            (source, job_id, old_status, old_stage, old_fencing, status, stage, fencing)
        VALUES ('jobs', NEW.id, OLD.status, OLD.stage, OLD.fencing_number,
                NEW.status, NEW.stage, NEW.fencing_number);
    END IF;
    IF TG_OP = 'INSERT' OR OLD.status <> NEW.status OR OLD.stage <> NEW.stage THEN
        PERFORM pg_notify('chaos', concat_ws(' ', NEW.id, NEW.status, NEW.stage, NEW.fencing_number,
                                             coalesce(NEW.lease_owner, '-'), NEW.project_id));
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION chaos_job();

CREATE FUNCTION chaos_beside() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO chaos_journal (source, job_id, status, stage, fencing)
    SELECT TG_TABLE_NAME, id, status, stage, fencing_number FROM jobs WHERE id = NEW.job_id;
    RETURN NULL;
END $$;
"""
_BESIDE = ("job_events", "job_attempts", "job_metrics", "job_checkpoints", "adapters")


@dataclass(frozen=True)
class Entry:
    """`old_*` are None where a row was inserted, and for every other table than `jobs`."""

    at: float
    transaction: int
    app: str
    source: str
    job_id: str
    old_status: str | None
    old_stage: str | None
    old_fencing: int | None
    status: str
    stage: str
    fencing: int

    @property
    def is_claim(self) -> bool:
        return self.old_fencing is not None and self.fencing != self.old_fencing

    @property
    def changes_state(self) -> bool:
        return self.old_status is not None and (self.old_status, self.old_stage) != (self.status, self.stage)


def install(connection: psycopg.Connection[Any]) -> None:
    connection.execute(_SQL)
    for table in _BESIDE:
        connection.execute(
            f"CREATE TRIGGER chaos AFTER INSERT OR UPDATE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION chaos_beside()"
        )


def read(connection: psycopg.Connection[Any]) -> list[Entry]:
    """In the order of the writes, which for one job is that of its commits: each locks the job's row."""
    columns = ", ".join(field.name for field in fields(Entry))
    rows = connection.execute(f"SELECT {columns} FROM chaos_journal ORDER BY sequence")  # noqa: S608
    return [Entry(*row) for row in rows]
