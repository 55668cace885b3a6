"""What was found out about a base when it was added.

Revision: 0016. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0016"
down_revision: str | None = "0015"
branch_labels: None = None
depends_on: None = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    with op.batch_alter_table("aligned_bases", recreate="never") as bases:
        bases.add_column(sa.Column("measurements", JSON, nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("aligned_bases", recreate="never") as bases:
        bases.drop_column("measurements")
