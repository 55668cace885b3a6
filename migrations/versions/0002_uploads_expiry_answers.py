"""Uploads in parts, files that expire, and first answers for requests that are sent again.

Revision: 0002, after 0001. Written 2026-11-21.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: None = None
depends_on: None = None

JSON = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")
SECONDS = sa.Float(precision=53)  # since the epoch


def upgrade() -> None:
    op.add_column("files", sa.Column("expires_at", SECONDS, nullable=True))
    op.create_index("ix_files_expires_at", "files", ["expires_at"])

    op.create_table(
        "uploads",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("filename", sa.String(length=1024), nullable=False),
        sa.Column("mime_type", sa.String(length=255), nullable=False),
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("file_expires_after_seconds", sa.Integer(), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.Column("expires_at", SECONDS, nullable=False),
        sa.Column("ended_at", SECONDS, nullable=True),
        sa.Column("part_ids", JSON, nullable=True),
        sa.Column("md5", sa.String(length=32), nullable=True),
        sa.Column("file_id", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["file_id"], ["files.id"], name="fk_uploads_file_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_uploads_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    op.create_index("ix_uploads_expiry", "uploads", ["status", "expires_at"])

    op.create_table(
        "upload_parts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("upload_id", sa.String(length=64), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.ForeignKeyConstraint(["upload_id"], ["uploads.id"], name="fk_upload_parts_upload_id"),
        sa.PrimaryKeyConstraint("id", name="pk_upload_parts"),
    )
    op.create_index("ix_upload_parts_upload_id", "upload_parts", ["upload_id"])

    op.create_table(
        "first_answers",
        sa.Column("project_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("created_at", SECONDS, nullable=False),
        sa.Column("expires_at", SECONDS, nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_first_answers_project_id"),
        sa.PrimaryKeyConstraint("project_id", "name", name="pk_first_answers"),
    )
    op.create_index("ix_first_answers_expires_at", "first_answers", ["expires_at"])


def downgrade() -> None:
    op.drop_index("ix_first_answers_expires_at", table_name="first_answers")
    op.drop_table("first_answers")
    op.drop_index("ix_upload_parts_upload_id", table_name="upload_parts")
    op.drop_table("upload_parts")
    op.drop_index("ix_uploads_expiry", table_name="uploads")
    op.drop_table("uploads")
    op.drop_index("ix_files_expires_at", table_name="files")
    # In place, not by Alembic's copy of the table: rows of `jobs` point to this one.
    op.drop_column("files", "expires_at")
