"""The safety report: what was measured, on what, with what, and whether the gate let it pass. Plain JSON.

Scores are percent. It holds no path, no prompt and no answer: its reader is the job's owner, and the
evaluation prompts are the operator's.
"""

from __future__ import annotations

from typing import Any

from service.jobs.states import Stage
from workers.attempt import Attempt

SCHEMA_VERSION = 1

_SCORES = ("harmful_score", "refusal_rate", "utility")


def passed_report(attempt: Attempt, *, measurements: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`measurements` are those on held-out prompts: base, before, after, random_control."""
    return _report(attempt, measurements=measurements, measured_on="held_out", refused=None)


def held_out_refused_report(
    attempt: Attempt, *, measurements: dict[str, dict[str, Any]], reason: str
) -> dict[str, Any]:
    """The strength that was chosen does not meet the gate on the held-out prompts."""
    return _report(attempt, measurements=measurements, measured_on="held_out", refused=reason)


def refused_report(
    attempt: Attempt, *, before: dict[str, Any], frontier: list[dict[str, Any]], reason: str
) -> dict[str, Any]:
    """No strength met the gate; `after` is the strongest one's. The base was not measured."""
    strongest = {key: value for key, value in frontier[-1].items() if key not in ("alpha", "refused")}
    return _report(
        attempt,
        measurements={"before": before, "after": strongest},
        measured_on="selection",
        refused=reason,
        alpha=frontier[-1]["alpha"],
        frontier=frontier,
    )


def _report(
    attempt: Attempt,
    *,
    measurements: dict[str, dict[str, Any]],
    measured_on: str,
    refused: str | None,
    alpha: float | None = None,
    frontier: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    order, profile = attempt.order, attempt.profile
    trained = attempt.outputs[Stage.TRAIN.value]
    sanitized = attempt.outputs.get(Stage.SANITIZE.value, {})
    record = sanitized.get("record")
    alpha = sanitized.get("alpha", alpha)
    summary = {
        score: {who: measurements.get(who, {}).get(score) for who in ("base", "before", "after")}
        for score in _SCORES
    }
    validation = order.validation_file
    return {
        "schema_version": SCHEMA_VERSION,
        "job_id": order.job_id,
        "result": "passed" if refused is None else "refused",
        "refused_because": refused,
        "summary": {"result": "passed" if refused is None else "refused", "alpha": alpha, **summary},
        "measured_on": measured_on,
        "measurements": measurements,
        "gate": profile.gate.model_dump(mode="json"),
        "frontier": sanitized.get("frontier", frontier),
        "frontier_measured_on": "selection",
        "method": {"name": profile.sanitize.method, "alpha": alpha, "rule": record and record["rule"]},
        "sparsity": record and _sparsity(record),
        "judge": profile.judge.partition(":")[0],
        "safety_profile_version": profile.version,
        "base": {
            "id": order.base.id,
            "revision": order.base.revision,
            "sha256": order.base.sha256,
            "alignment_method": order.base.alignment_method,
        },
        "adapter_sha256": {
            "before": trained["adapter_sha256"],
            "after": sanitized.get("adapter_sha256"),
        },
        "data": {
            "training_file": {"id": order.training_file.id, "sha256": order.training_file.sha256},
            "validation_file": validation and {"id": validation.id, "sha256": validation.sha256},
            "safety_profile_sha256": attempt.outputs[Stage.PREPARE.value]["profile_sha256"],
        },
        "training": {
            key: trained[key] for key in ("steps", "trained_tokens", "first_loss", "final_loss", "seconds")
        },
        "versions": record and record["versions"],
    }


def _sparsity(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "pruned_fraction": record["pruned_fraction"],
        "matrices": {
            name: count["pruned"] / (count["rows"] * count["cols"])
            for name, count in record["matrices"].items()
        },
    }
