"""A row per project to choose the next job by, the kinds of workers, and what a job needs.

Revision: 0013. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"
branch_labels: None = None
depends_on: None = None

SECONDS = sa.Float(precision=53)
WAITS = sa.text("head_queued_at IS NOT NULL")
QUEUED = sa.text("status = 'queued'")
RUNNING = sa.text("status = 'running'")


def upgrade() -> None:
    op.create_table(
        "project_queues",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("worker_class", sa.String(length=64), nullable=True),
        sa.Column("num_running", sa.Integer(), nullable=False),
        sa.Column("num_waiting", sa.Integer(), nullable=False),
        sa.Column("head_queued_at", SECONDS, nullable=True),
        sa.Column("recent", SECONDS, nullable=False),
        sa.Column("running_limit", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_project_queues_project_id"),
        sa.PrimaryKeyConstraint("project_id", name="pk_project_queues"),
    )
    op.create_table(
        "known_workers",
        sa.Column("worker_class", sa.String(length=64), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", SECONDS, nullable=False),
        sa.PrimaryKeyConstraint("worker_class", "memory_bytes", name="pk_known_workers"),
    )
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        jobs.add_column(sa.Column("needed_memory_bytes", sa.BigInteger(), nullable=True))
    op.drop_index("ix_jobs_held", table_name="jobs")
    op.create_index(
        "ix_project_queues_turn",
        "project_queues",
        ["rank", "num_running", "recent", "head_queued_at", "project_id"],
        postgresql_where=WAITS,
        sqlite_where=WAITS,
    )
    op.create_index(
        "ix_jobs_turn",
        "jobs",
        ["project_id", "queued_at", "id"],
        postgresql_where=QUEUED,
        sqlite_where=QUEUED,
    )
    op.create_index("ix_jobs_running", "jobs", ["project_id"], postgresql_where=RUNNING, sqlite_where=RUNNING)
    op.create_index("ix_jobs_rung", "jobs", ["rung_at"], postgresql_where=QUEUED, sqlite_where=QUEUED)
    op.execute(
        """
        INSERT INTO project_queues (project_id, rank, num_running, num_waiting, head_queued_at, recent)
        SELECT project_id, 0,
               SUM(CASE WHEN status = 'running' THEN 1 ELSE 0 END),
               SUM(CASE WHEN status = 'queued' THEN 1 ELSE 0 END),
               MIN(CASE WHEN status = 'queued' THEN COALESCE(queued_at, created_at) END), 0
        FROM jobs WHERE status IN ('queued', 'running') GROUP BY project_id
        """
    )


def downgrade() -> None:
    for name, table in (
        ("ix_jobs_rung", "jobs"),
        ("ix_jobs_running", "jobs"),
        ("ix_jobs_turn", "jobs"),
        ("ix_project_queues_turn", "project_queues"),
    ):
        op.drop_index(name, table_name=table)
    op.create_index("ix_jobs_held", "jobs", ["project_id", "held_since"])
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        jobs.drop_column("needed_memory_bytes")
    op.drop_table("known_workers")
    op.drop_table("project_queues")
