"""What a job may use of a worker, and what a judge made of answers whose label is known.

Revision: 0018. Written 2026-11-22.
"""

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"
branch_labels: None = None
depends_on: None = None

KNOWN_ANSWERS = ("num_known", "false_positives", "false_negatives")


def upgrade() -> None:
    with op.batch_alter_table("workers", recreate="never") as workers:
        workers.add_column(sa.Column("worker_class", sa.String(64), nullable=True))
        workers.add_column(sa.Column("job_memory_bytes", sa.BigInteger, nullable=True))
        workers.add_column(sa.Column("job_processes", sa.Integer, nullable=True))
    with op.batch_alter_table("safety_figures", recreate="never") as figures:
        for name in KNOWN_ANSWERS:
            figures.add_column(sa.Column(name, sa.Integer, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("safety_figures", recreate="never") as figures:
        for name in reversed(KNOWN_ANSWERS):
            figures.drop_column(name)
    with op.batch_alter_table("workers", recreate="never") as workers:
        workers.drop_column("job_processes")
        workers.drop_column("job_memory_bytes")
        workers.drop_column("worker_class")
