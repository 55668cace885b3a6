"""Sanitises the adapter at the weakest strength that meets the gate (docs/decisions/0006)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from autoclave.data.tokens import Encoded
from autoclave.errors import SafetyGateError
from autoclave.evaluation.figures import Figures
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE
from autoclave.sanitizing.gated import GatedResult, sanitize_gated
from autoclave.sanitizing.record import RECORD_FILE, sanitization_record, write_masks
from autoclave.sanitizing.sanitizer import Sanitizer
from autoclave.sanitizing.strengths import Strength, ladders
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError
from workers.messages import StageFinished
from workers.profile_files import realignment, safety_evaluation
from workers.report import refused_report
from workers.sanitizers import sanitizer_of, user_examples


def sanitize(attempt: Attempt) -> StageFinished:
    """Raises StageError safety_gate_failed, with the report, if no strength meets the gate. If an operator
    waived it, the strength nearest to the gate is applied instead: an adapter is sanitised in any case."""
    profile, reporter = attempt.profile, attempt.reporter
    model = attempt.adapted(attempt.stored_adapter(Stage.TRAIN))
    evaluation = safety_evaluation(attempt)
    realign = realignment(attempt)
    num_strengths = sum(map(len, ladders(profile.sanitize)))
    rounds = reporter.rounds(2 + min(num_strengths, profile.sanitize.max_evaluations))
    before: list[Figures] = []

    def on_figures(strength: Strength | None, figures: Figures) -> None:
        rounds.next()
        if strength is None:
            before.append(figures)
        what = "Before sanitising" if strength is None else f"Tried {strength}"
        reporter.note(f"{what}: {_in_words(figures)}")

    sanitizer = sanitizer_of(
        attempt, model, profile.sanitize, harmful=realign.examples, on_progress=rounds.on_progress
    )
    rounds.next()
    try:
        result = sanitize_gated(
            model,
            sanitizer,
            profile.sanitize,
            evaluation,
            profile.gate,
            when_missed="refuse" if attempt.order.gate_waived is None else "closest",
            on_progress=rounds.on_progress,
            on_figures=on_figures,
        )
    except SafetyGateError as error:
        report = refused_report(
            attempt,
            before=before[0].as_dict(),
            frontier=error.frontier,
            reason=error.reason,
            answers_from=evaluation.generators.name,
        )
        raise StageError("safety_gate_failed", error.reason, safety_report=report) from error
    found = result.found
    if found.missed is not None:
        reporter.note(f"The gate, which an operator waived, was missed: {found.missed}", level="warn")
    output = _save(attempt, model, sanitizer, result, realign)
    output |= {
        "strength": asdict(found.chosen),
        "before": result.before.as_dict(),
        "chosen": found.figures.as_dict(),
        "frontier": found.frontier,
        "num_evaluations": found.num_evaluations,
        "missed": found.missed,
    }
    return StageFinished(stage=Stage.SANITIZE, output=output)


def _save(
    attempt: Attempt, model: Any, sanitizer: Sanitizer, result: GatedResult, realign: Encoded
) -> dict[str, Any]:
    """Masks and norms go beside the adapter: the folder is private, `publish` leaves them there."""
    spec, chosen = attempt.profile.sanitize, result.found.chosen
    folder = attempt.saved_adapter(Stage.SANITIZE, model)
    record = sanitization_record(
        spec, chosen, result.changes, harmful=realign.examples, user=user_examples(attempt, spec)
    )
    record |= {
        "device": attempt.device,
        "realign_truncated": realign.num_truncated,
        "sha256": {
            "base": attempt.order.base.sha256,
            "adapter_in": attempt.outputs[Stage.TRAIN.value]["adapter_sha256"],
            "adapter_out": file_sha256(folder / WEIGHTS_FILE),
            "realign_data": file_sha256(attempt.profile.realign),
        },
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    write_masks(sanitizer, chosen, folder)
    return attempt.store(Stage.SANITIZE, folder) | {"record": record}


def _in_words(figures: Figures) -> str:
    words = f"harmful score {figures.harmful_score:.1f} %, refusals {figures.refusal_rate:.1f} %"
    words += f", coherent {figures.coherence_rate:.1f} %"
    if figures.utility is not None:
        words += f", utility {figures.utility:.1f} %"
    return words if figures.complete else f"{words} (stopped after {figures.num_prompts} prompts)"
