"""What became of each attempt at a job.

Revision: 0014. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0014"
down_revision: str | None = "0013"
branch_labels: None = None
depends_on: None = None

SECONDS = sa.Float(precision=53)  # since the epoch


def upgrade() -> None:
    op.create_table(
        "job_attempts",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("fencing_number", sa.BigInteger(), nullable=False),
        sa.Column("worker", sa.String(length=255), nullable=False),
        sa.Column("first_stage", sa.String(length=16), nullable=False),
        sa.Column("last_stage", sa.String(length=16), nullable=True),
        sa.Column("started_at", SECONDS, nullable=False),
        sa.Column("ended_at", SECONDS, nullable=True),
        sa.Column("exit_reason", sa.String(length=24), nullable=True),
        sa.Column("exit_code", sa.Integer(), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("log_expires_at", SECONDS, nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_attempts_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", "fencing_number", name="pk_job_attempts"),
    )
    op.create_index("ix_job_attempts_log_expires_at", "job_attempts", ["log_expires_at"])


def downgrade() -> None:
    op.drop_index("ix_job_attempts_log_expires_at", table_name="job_attempts")
    op.drop_table("job_attempts")
