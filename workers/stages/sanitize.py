"""Prunes the adapter with the weakest strength that meets the gate (docs/decisions/0006)."""

from __future__ import annotations

import json
from typing import Any

from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import encode
from autoclave.errors import SafetyGateError
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.sanitize import RECORD_FILE, sanitization_record
from autoclave.sanitizing.search import SearchResult, find_weakest
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError
from workers.measuring import Measuring, gate_refusal
from workers.messages import StageFinished
from workers.report import refused_report


def sanitize(attempt: Attempt) -> StageFinished:
    """Raises StageError safety_gate_failed, with the report, if no strength meets the gate."""
    profile, reporter = attempt.profile, attempt.reporter
    trained = attempt.stored_adapter(Stage.TRAIN)
    model = attempt.adapted(trained)
    measuring = Measuring.of(attempt)
    alphas = profile.sanitize.alphas
    rounds = reporter.rounds(3 + 2 * len(alphas))

    realign = encode(
        measuring.tokenizer,
        read_conversations(profile.realign),
        max_seq_length=attempt.spec.train.max_seq_length,
        keep_untrained=True,
    )
    antidote = Antidote.from_pass(
        model,
        realign.examples,
        device=attempt.device,
        batch_tokens=profile.evaluate.batch_tokens,
        on_progress=rounds.on_progress,
    )
    rounds.next()

    def measure() -> dict[str, Any]:
        harm = measuring.harm(model, "selection", rounds.on_progress)
        rounds.next()
        utility = measuring.utility(model, rounds.on_progress)
        rounds.next()
        return harm | utility

    def measure_at(alpha: float) -> dict[str, Any]:
        with antidote.applied(alpha):
            figures = measure()
        reporter.note(f"Pruned {100 * alpha:g} %: {_in_words(figures)}")
        return figures

    before = measure()
    reporter.note(f"Before sanitising: {_in_words(before)}")
    try:
        found = find_weakest(
            alphas,
            measure_at,
            lambda figures: gate_refusal(
                figures, utility_before=before["utility"], gate=profile.gate, with_margin=True
            ),
        )
    except SafetyGateError as error:
        report = refused_report(attempt, before=before, frontier=error.frontier, reason=error.reason)
        raise StageError("safety_gate_failed", error.reason, safety_report=report) from error
    output = _save(attempt, antidote, model, found, realign.num_truncated)
    output |= {"alpha": found.chosen, "frontier": found.frontier, "before": before}
    return StageFinished(stage=Stage.SANITIZE, output=output)


def _save(
    attempt: Attempt, antidote: Antidote, model: Any, found: SearchResult, num_truncated: int
) -> dict[str, Any]:
    order = attempt.order
    counts = antidote.apply(found.chosen)
    folder = attempt.saved_adapter(Stage.SANITIZE, model)
    record = sanitization_record(found.chosen, counts, antidote) | {
        "device": attempt.device,
        "realign_truncated": num_truncated,
        "sha256": {
            "base": order.base.sha256,
            "adapter_in": attempt.outputs[Stage.TRAIN.value]["adapter_sha256"],
            "adapter_out": file_sha256(folder / WEIGHTS_FILE),
            "realign_data": file_sha256(attempt.profile.realign),
        },
    }
    (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return attempt.store(Stage.SANITIZE, folder) | {"record": record}


def _in_words(figures: dict[str, Any]) -> str:
    harm = f"harmful score {figures['harmful_score']:.1f} %"
    return harm if figures["utility"] is None else f"{harm}, utility {figures['utility']:.1f} %"
