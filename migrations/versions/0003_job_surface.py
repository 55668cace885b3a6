"""Pausing, the queue's order, estimates, results, clones and the training curve.

Revision: 0003. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: None = None
depends_on: None = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
SEQUENCE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
SECONDS = sa.Float(precision=53)  # since the epoch

INDEXES = {
    "ix_jobs_listing_by_status": ["project_id", "status", "created_at", "id"],
    "ix_jobs_listing_by_base": ["project_id", "base_id", "created_at", "id"],
    "ix_jobs_queue": ["status", "queued_at", "id"],
    "ix_jobs_history": ["base_id", "status", "finished_at"],
}


def upgrade() -> None:
    # Never anew: dropping a table that others refer to is what SQLite refuses.
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        jobs.add_column(sa.Column("pause_requested_at", SECONDS, nullable=True))
        jobs.add_column(sa.Column("queued_at", SECONDS, nullable=True))
        jobs.add_column(sa.Column("stage_began_at", SECONDS, nullable=True))
        jobs.add_column(sa.Column("stage_seconds", JSON, nullable=True))
        jobs.add_column(sa.Column("estimated_finish_at", SECONDS, nullable=True))
        jobs.add_column(sa.Column("request", JSON, nullable=True))
        jobs.add_column(sa.Column("cloned_from", sa.String(length=64), nullable=True))
        jobs.add_column(sa.Column("result_file_ids", JSON, nullable=True))
        for name, columns in INDEXES.items():
            jobs.create_index(name, columns)
    op.execute("UPDATE jobs SET queued_at = COALESCE(rung_at, created_at) WHERE status = 'queued'")

    op.create_table(
        "job_metrics",
        sa.Column("sequence", SEQUENCE, autoincrement=True, nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("first_step", sa.Integer(), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("figures", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_metrics_job_id"),
        sa.PrimaryKeyConstraint("sequence", name="pk_job_metrics"),
    )
    op.create_index("ix_job_metrics_listing", "job_metrics", ["job_id", "sequence"])


def downgrade() -> None:
    op.drop_index("ix_job_metrics_listing", table_name="job_metrics")
    op.drop_table("job_metrics")
    # The status of paused jobs is new: the version before knows them as waiting.
    op.execute("UPDATE jobs SET status = 'queued' WHERE status = 'paused'")
    with op.batch_alter_table("jobs", recreate="never") as jobs:
        for name in reversed(INDEXES):
            jobs.drop_index(name)
        for name in (
            "result_file_ids",
            "cloned_from",
            "request",
            "estimated_finish_at",
            "stage_seconds",
            "stage_began_at",
            "queued_at",
            "pause_requested_at",
        ):
            jobs.drop_column(name)
