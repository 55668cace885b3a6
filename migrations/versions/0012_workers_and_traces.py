"""Workers that show themselves, when jobs last moved, and what ties a job to its request.

Revision: 0012. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"
branch_labels: None = None
depends_on: None = None

SECONDS = sa.Float(precision=53)  # since the epoch

JOB_COLUMNS = {
    "heartbeat_at": SECONDS,
    "progress_at": SECONDS,
    "request_id": sa.String(length=64),
    "traceparent": sa.String(length=64),
}


def upgrade() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("started_at", SECONDS, nullable=False),
        sa.Column("heartbeat_at", SECONDS, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=True),
        sa.Column("device_kind", sa.String(length=16), nullable=False),
        sa.Column("device_name", sa.String(length=255), nullable=False),
        sa.Column("memory_used_bytes", sa.BigInteger(), nullable=True),
        sa.Column("memory_total_bytes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_index("ix_workers_heartbeat_at", "workers", ["heartbeat_at"])
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        for name, kind in JOB_COLUMNS.items():
            jobs.add_column(sa.Column(name, kind, nullable=True))
    op.create_index("ix_jobs_counts", "jobs", ["status", "stage"])
    with op.batch_alter_table("outbox", recreate="never") as outbox:
        outbox.add_column(sa.Column("traceparent", sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("outbox", recreate="never") as outbox:
        outbox.drop_column("traceparent")
    op.drop_index("ix_jobs_counts", table_name="jobs")
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        for name in reversed(JOB_COLUMNS):
            jobs.drop_column(name)
    op.drop_index("ix_workers_heartbeat_at", table_name="workers")
    op.drop_table("workers")
