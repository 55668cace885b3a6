"""What a job may use of a worker, so that an owner can be told which workers are large enough.

Revision: 0018. Written 2026-11-22.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: None = None
depends_on: None = None


def upgrade() -> None:
    with op.batch_alter_table("workers", recreate="never") as workers:
        workers.add_column(sa.Column("worker_class", sa.String(64), nullable=True))
        workers.add_column(sa.Column("job_memory_bytes", sa.BigInteger, nullable=True))
        workers.add_column(sa.Column("job_processes", sa.Integer, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("workers", recreate="never") as workers:
        workers.drop_column("job_processes")
        workers.drop_column("job_memory_bytes")
        workers.drop_column("worker_class")
