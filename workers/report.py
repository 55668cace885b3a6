"""The safety report: what was measured, on what, with what, and whether the gate let it pass. Plain JSON.

Scores are percent, held-out losses nats per token. It holds no path, no prompt and no answer: its reader is
the job's owner, and the evaluation prompts are the operator's. docs/api.md describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from autoclave.evaluation.calibration import Disagreement
from autoclave.evaluation.figures import Figures
from autoclave.sanitizing.masks import RULES
from autoclave.sanitizing.method_table import ABOUT
from service.jobs.states import Stage
from workers.attempt import Attempt

SCHEMA_VERSION = 2

_SCORES = ("harmful_score", "refusal_rate", "coherence_rate", "utility")


@dataclass(frozen=True)
class Measurements:
    """None, or not there: not measured. `ablations` are the pipeline's steps, each alone, `disagreements` of
    the second judge with the first one by whose answers they are, `answers_from` the way in which all were
    made (docs/generation.md)."""

    before: Figures
    after: Figures
    base: Figures | None = None
    random_control: Figures | None = None
    ablations: Mapping[str, Figures] = field(default_factory=dict)
    disagreements: Mapping[str, Disagreement] = field(default_factory=dict)
    answers_from: str | None = None

    def as_dict(self) -> dict[str, Any]:
        measured = {
            "base": self.base,
            "before": self.before,
            "after": self.after,
            "random_control": self.random_control,
        }
        return {who: figures and figures.as_dict() for who, figures in measured.items()}

    def summary(self) -> dict[str, Any]:
        three = {"base": self.base, "before": self.before, "after": self.after}
        return {
            score: {who: figures and getattr(figures, score) for who, figures in three.items()}
            for score in _SCORES
        }


def passed_report(attempt: Attempt, measurements: Measurements) -> dict[str, Any]:
    """`measurements` are those on held-out prompts."""
    return _report(attempt, attempt.outputs[Stage.SANITIZE.value], measurements, "held_out", refused=None)


def held_out_refused_report(attempt: Attempt, measurements: Measurements, *, reason: str) -> dict[str, Any]:
    """The strength that was chosen does not meet the gate on the held-out prompts."""
    return _report(attempt, attempt.outputs[Stage.SANITIZE.value], measurements, "held_out", refused=reason)


def waived_report(attempt: Attempt, measurements: Measurements, *, reason: str) -> dict[str, Any]:
    """The gate was missed, but an operator lets the adapter leave. `measurements` are those on held-out
    prompts, `reason` says where the gate was missed."""
    sanitized = attempt.outputs[Stage.SANITIZE.value]
    return _report(attempt, sanitized, measurements, "held_out", refused=reason, result="waived")


def refused_report(
    attempt: Attempt,
    *,
    before: dict[str, Any],
    frontier: list[dict[str, Any]],
    reason: str,
    answers_from: str | None = None,
) -> dict[str, Any]:
    """No strength met the gate; `after` is the strongest one tried. Base and controls were not measured."""
    strongest = frontier[-1]
    sanitized = {
        "strength": {"alpha": strongest["alpha"], "mu": strongest["mu"]},
        "frontier": frontier,
        "num_evaluations": len(frontier),
    }
    measurements = Measurements(
        before=Figures.from_dict(before), after=Figures.from_dict(strongest), answers_from=answers_from
    )
    return _report(attempt, sanitized, measurements, "selection", refused=reason)


def _report(
    attempt: Attempt,
    sanitized: dict[str, Any],
    measurements: Measurements,
    measured_on: str,
    *,
    refused: str | None,
    result: Literal["waived"] | None = None,
) -> dict[str, Any]:
    """`sanitized` is the sanitize stage's output; without `record` where nothing was sanitised."""
    order, profile = attempt.order, attempt.profile
    trained = attempt.outputs[Stage.TRAIN.value]
    record, strength = sanitized.get("record"), sanitized["strength"]
    outcome = result or ("passed" if refused is None else "refused")
    validation = order.validation_file
    return {
        "schema_version": SCHEMA_VERSION,
        "job_id": order.job_id,
        "result": outcome,
        "refused_because": refused,
        "summary": {"result": outcome, **strength, **measurements.summary()},
        "measured_on": measured_on,
        "measurements": measurements.as_dict(),
        "ablations": {n: figures.as_dict() for n, figures in measurements.ablations.items()} or None,
        "gate": profile.gate.model_dump(mode="json")
        | {
            "passed": refused is None,
            "waived_by_operator": _waiver(attempt) if outcome == "waived" else None,
        },
        "strength": strength,
        "frontier": sanitized["frontier"],
        "frontier_measured_on": "selection",
        "num_evaluations": sanitized["num_evaluations"],
        "method": _method(attempt, strength),
        "sparsity": record and _sparsity(record),
        "relative_change": record and _relative_change(record),
        "judge": profile.judge.partition(":")[0],
        "judging": _judging(attempt, measurements),
        "answers_from": measurements.answers_from,
        "safety_profile_version": profile.version,
        "base": {
            "id": order.base.id,
            "revision": order.base.revision,
            "sha256": order.base.sha256,
            "alignment_method": order.base.alignment_method,
            "floor": order.base.floor,
        },
        "adapter_sha256": {
            "before": trained["adapter_sha256"],
            "after": sanitized.get("adapter_sha256"),
        },
        "started_from": order.starts_from
        and {"job_id": order.starts_from.job_id, "checkpoint_id": order.starts_from.checkpoint_id},
        "data": {
            "training_file": {"id": order.training_file.id, "sha256": order.training_file.sha256},
            "validation_file": validation and {"id": validation.id, "sha256": validation.sha256},
            "safety_profile_sha256": attempt.outputs[Stage.PREPARE.value]["profile_sha256"],
        },
        "screen": attempt.outputs[Stage.PREPARE.value].get("screen"),
        "defence": attempt.spec.defence.model_dump(mode="json"),
        "training": {
            key: trained[key] for key in ("steps", "trained_tokens", "first_loss", "final_loss", "seconds")
        },
        "versions": record and record["versions"],
    }


def _judging(attempt: Attempt, measurements: Measurements) -> dict[str, Any] | None:
    calibrated: dict[str, Any] | None = attempt.outputs[Stage.PREPARE.value].get("judging")  # may be older
    if calibrated is None:
        return None
    found = {who: asdict(disagreement) for who, disagreement in measurements.disagreements.items()}
    return calibrated | {"disagreement": found or None}


def _waiver(attempt: Attempt) -> dict[str, Any]:
    waiver = attempt.order.gate_waived
    assert waiver is not None, "nobody waived the gate"
    return {"reason": waiver.reason, "at": int(waiver.at)}


def _method(attempt: Attempt, strength: dict[str, Any]) -> dict[str, Any]:
    spec = attempt.profile.sanitize
    prunes, projects = strength["alpha"] is not None, strength["mu"] is not None
    return {
        "name": spec.method,
        "about": ABOUT[spec.method],
        **strength,
        "rule_name": spec.rule if prunes else None,
        "rule": RULES[spec.rule] if prunes else None,
        "norm": spec.norm if prunes else None,
        "ridge": spec.ridge if projects else None,
    }


def _sparsity(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "pruned_fraction": record["pruned_fraction"],
        "layers": record["layers"],
        "matrices": {name: matrix["sparsity"] for name, matrix in record["matrices"].items()},
    }


def _relative_change(record: dict[str, Any]) -> dict[str, Any]:
    return {
        "all": record["relative_change"],
        "matrices": {name: matrix["relative_change"] for name, matrix in record["matrices"].items()},
    }
