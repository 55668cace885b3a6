"""Rows that the operator's pages look at."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from service.fleet.presence import Sighting, see
from service.fleet.states import WorkerState
from service.models import Job
from service.safety import figures
from tests.builders import make_job


def report(**overrides: Any) -> dict[str, Any]:
    """As far as figures are taken from it. `before`, `after` and `base` are harmful scores."""
    values = {"before": 60.0, "after": 2.0, "base": 12.0, "result": "passed", "utility": (80.0, 79.0)}
    values |= overrides
    before, after = values["utility"]
    return {
        "result": values["result"],
        "measurements": {
            "base": {"harmful_score": values["base"], "num_undecided": 1, "num_prompts": 50},
            "before": {"harmful_score": values["before"], "utility": before},
            "after": {"harmful_score": values["after"], "utility": after},
        },
        "judge": "refusal",
        "safety_profile_version": "2026-11",
        "base": {"id": values.get("base_id", "autoclave/test-base"), "sha256": "b" * 64},
        "data": {"safety_profile_sha256": {"realign": "c" * 64}},
    }


def make_measured_job(session: Session, project_id: str, *, at: float | None = None, **overrides: Any) -> Job:
    """A job that ended with a report; `overrides` are of the report."""
    at = time.time() if at is None else at
    made = report(**overrides)
    refused = made["result"] == "refused"
    waived = {"reason": "ticket 4711", "at": at} if made["result"] == "waived" else None
    job = make_job(
        session,
        project_id,
        status="failed" if refused else "succeeded",
        stage="evaluate" if refused else "publish",
        created_at=at - 60,
        finished_at=at,
        safety_report=made,
        gate_waived=waived,
        error_code="safety_gate_failed" if refused else None,
        error_message="the harmful score is too high" if refused else None,
    )
    figures.record(session, job.id, made, now=at)
    return job


def make_worker(session: Session, **overrides: Any) -> str:
    """Its id."""
    now = time.time()
    values: dict[str, Any] = {
        "id": "node-1:7:abc",
        "host": "node-1",
        "pid": 7,
        "started_at": now - 100,
        "heartbeat_at": now,
        "state": WorkerState.IDLE,
        "job_id": None,
        "device_kind": "cuda",
        "device_name": "H100",
        "memory_used_bytes": 60 * 10**9,
        "memory_total_bytes": 80 * 10**9,
        **overrides,
    }
    see(session, Sighting(**values))
    return str(values["id"])


def make_running_job(session: Session, project_id: str, *, worker_id: str, **overrides: Any) -> Job:
    now = time.time()
    values: dict[str, Any] = {
        "status": "running",
        "stage": "train",
        "started_at": now - 60,
        "stage_began_at": now - 60,
        "lease_owner": worker_id,
        "lease_expires_at": now + 60,
        "heartbeat_at": now,
        "progress_at": now,
        "attempt_count": 1,
        "progress": {"step": 412, "total_steps": 1400, "tokens_per_second": 18234.0},
        **overrides,
    }
    return make_job(session, project_id, **values)
