"""Bases that an admin key asked a worker to register.

Revision: 0017. Written 2026-11-22.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0017"
down_revision: str | None = "0016"
branch_labels: None = None
depends_on: None = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
SECONDS = sa.Float(precision=53)  # since the epoch
LIVE = sa.text("status IN ('queued', 'running')")


def upgrade() -> None:
    op.create_table(
        "base_registrations",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("organization_id", sa.String(length=64), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("revision", sa.String(length=255), nullable=True),
        sa.Column("profile", JSON, nullable=True),
        sa.Column("profile_file", sa.Text(), nullable=True),
        sa.Column("profile_of", sa.String(length=255), nullable=True),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("template", sa.String(length=64), nullable=True),
        sa.Column("store", sa.Text(), nullable=True),
        sa.Column("alignment_method", sa.String(length=64), nullable=True),
        sa.Column("device", sa.String(length=16), nullable=True),
        sa.Column("worker_class", sa.String(length=63), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started_at", SECONDS, nullable=True),
        sa.Column("finished_at", SECONDS, nullable=True),
        sa.Column("cancel_requested_at", SECONDS, nullable=True),
        sa.Column("rung_at", SECONDS, nullable=True),
        sa.Column("lease_owner", sa.String(length=255), nullable=True),
        sa.Column("lease_expires_at", SECONDS, nullable=True),
        sa.Column("heartbeat_at", SECONDS, nullable=True),
        sa.Column("fencing_number", sa.BigInteger(), nullable=False),
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("notes", JSON, nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["organization_id"],
            ["organizations.id"],
            name="fk_base_registrations_organization_id",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_base_registrations"),
    )
    op.create_index("ix_base_registrations_listing", "base_registrations", ["created_at", "id"])
    op.create_index(
        "ix_base_registrations_live_name",
        "base_registrations",
        ["name"],
        unique=True,
        postgresql_where=LIVE,
        sqlite_where=LIVE,
    )
    op.create_index(
        "ix_base_registrations_live",
        "base_registrations",
        ["status", "created_at"],
        postgresql_where=LIVE,
        sqlite_where=LIVE,
    )


def downgrade() -> None:
    op.drop_table("base_registrations")
