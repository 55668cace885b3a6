"""What operators look at over all projects: figures of every safety report, and indexes for their lists.

Revision: 0015. Written 2026-11-21.
"""

import hashlib
import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"
branch_labels: None = None
depends_on: None = None

SECONDS = sa.Float(precision=53)  # since the epoch
JOBS_AT_ONCE = 200

INDEXES = {
    "jobs": {
        "ix_jobs_all": ["created_at", "id"],
        "ix_jobs_all_by_status": ["status", "created_at", "id"],
        "ix_jobs_all_by_base": ["base_id", "created_at", "id"],
    },
    "audit_entries": {
        "ix_audit_entries_project": ["project_id", "sequence"],
        "ix_audit_entries_action": ["action", "sequence"],
        "ix_audit_entries_actor": ["actor", "sequence"],
    },
}


def upgrade() -> None:
    figures = op.create_table(
        "safety_figures",
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("measured_at", SECONDS, nullable=False),
        sa.Column("base_id", sa.String(length=255), nullable=False),
        sa.Column("result", sa.String(length=16), nullable=False),
        sa.Column("harmful_before", SECONDS, nullable=True),
        sa.Column("harmful_after", SECONDS, nullable=True),
        sa.Column("utility_before", SECONDS, nullable=True),
        sa.Column("utility_after", SECONDS, nullable=True),
        sa.Column("control_harmful", SECONDS, nullable=True),
        sa.Column("control_undecided", sa.Integer(), nullable=True),
        sa.Column("control_prompts", sa.Integer(), nullable=True),
        sa.Column("control_key", sa.String(length=64), nullable=True),
        sa.Column("judge", sa.String(length=64), nullable=True),
        sa.Column("profile_version", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_safety_figures_job_id_jobs"),
        sa.PrimaryKeyConstraint("job_id", name="pk_safety_figures"),
    )
    op.create_index("ix_safety_figures_measured_at", "safety_figures", ["measured_at"])
    for table, indexes in INDEXES.items():
        for name, columns in indexes.items():
            op.create_index(name, table, columns)
    _fill(figures)


def _fill(figures: sa.Table) -> None:
    """From the reports that are there already."""
    jobs = sa.table(
        "jobs",
        sa.column("id", sa.String),
        sa.column("created_at", SECONDS),
        sa.column("finished_at", SECONDS),
        sa.column("safety_report", sa.JSON),
    )
    connection = op.get_bind()
    after = ""
    while True:
        rows = connection.execute(
            sa.select(jobs)
            .where(jobs.c.id > after, jobs.c.safety_report.is_not(None))
            .order_by(jobs.c.id)
            .limit(JOBS_AT_ONCE)
        ).all()
        if not rows:
            return
        after = rows[-1].id
        connection.execute(
            figures.insert(),
            [
                {"job_id": row.id, "measured_at": row.finished_at or row.created_at, **_of(row.safety_report)}
                for row in rows
            ],
        )


def _of(report: dict[str, Any]) -> dict[str, Any]:
    """As `service.safety.figures` did when this was written."""
    measured = report.get("measurements") or {}
    before, after, control = (measured.get(who) or {} for who in ("before", "after", "base"))
    base, data, gate = (report.get(part) or {} for part in ("base", "data", "gate"))
    judge, version = report.get("judge"), report.get("safety_profile_version")
    same = [base.get("id"), base.get("sha256"), data.get("safety_profile_sha256"), version, judge]
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
    return {
        "base_id": base.get("id", ""),
        "result": report.get("result") or ("passed" if gate.get("passed") else "refused"),
        "harmful_before": before.get("harmful_score"),
        "harmful_after": after.get("harmful_score"),
        "utility_before": before.get("utility"),
        "utility_after": after.get("utility"),
        "control_harmful": control.get("harmful_score"),
        "control_undecided": control.get("num_undecided"),
        "control_prompts": control.get("num_prompts"),
        "control_key": key if control else None,
        "judge": None if judge is None else judge[:64],
        "profile_version": None if version is None else version[:255],
    }


def downgrade() -> None:
    for table, indexes in INDEXES.items():
        for name in indexes:
            op.drop_index(name, table_name=table)
    op.drop_index("ix_safety_figures_measured_at", table_name="safety_figures")
    op.drop_table("safety_figures")
