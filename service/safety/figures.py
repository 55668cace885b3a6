"""The row of `safety_figures` that goes with a safety report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy.orm import Session

from service.models import SafetyFigures


def record(session: Session, job_id: str, report: Mapping[str, Any] | None, *, now: float) -> None:
    """Write the row, or write it anew: publishing repeats the report that evaluating made. Nothing without
    a report."""
    if report is None:
        return
    session.merge(SafetyFigures(job_id=job_id, measured_at=now, **columns(report)))
    session.flush()


def columns(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of a report as `workers.report` writes it, or an older version did: what is not there is null."""
    measured = report.get("measurements") or {}
    before, after, control = (measured.get(who) or {} for who in ("before", "after", "base"))
    base, gate = report.get("base") or {}, report.get("gate") or {}
    known = (report.get("judging") or {}).get("calibration") or {}
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
        "control_key": _control_key(report) if control else None,
        "num_known": known.get("num_rows"),
        "false_positives": known.get("false_positives"),
        "false_negatives": known.get("false_negatives"),
        "judge": _cut(report.get("judge"), 64),
        "profile_version": _cut(report.get("safety_profile_version"), 255),
    }


def _cut(words: str | None, longest: int) -> str | None:
    """A report is never refused for a long name."""
    return None if words is None else words[:longest]


def _control_key(report: Mapping[str, Any]) -> str:
    base, data = report.get("base") or {}, report.get("data") or {}
    same = [
        base.get("id"),
        base.get("sha256"),
        data.get("safety_profile_sha256"),
        report.get("safety_profile_version"),
        report.get("judge"),
    ]
    known = (report.get("judging") or {}).get("control_sha256")
    if known is not None:
        same.append(known)
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()
