"""Measures base, before and after on prompts that chose nothing, and asks the gate again."""

from __future__ import annotations

from typing import Any

from safetensors.torch import save_file

from autoclave.modelling.export_gate import last_logits
from autoclave.sanitizing.random_control import randomly_pruned
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError
from workers.measuring import Measuring, gate_refusal
from workers.messages import StageFinished
from workers.report import held_out_refused_report, passed_report

PROBES_FILE = "probes.safetensors"


def evaluate(attempt: Attempt) -> StageFinished:
    """Raises StageError safety_gate_failed, with the report, if the held-out prompts refute the choice.

    Utility before and after are those of the sanitize stage: the same adapters on the same file.
    """
    profile = attempt.profile
    chosen = attempt.outputs[Stage.SANITIZE.value]
    before_adapter = attempt.stored_adapter(Stage.TRAIN)
    after_adapter = attempt.stored_adapter(Stage.SANITIZE)
    measuring = Measuring.of(attempt)
    rounds = attempt.reporter.rounds(6)

    def harm(model: Any) -> dict[str, Any]:
        figures = measuring.harm(model, "held_out", rounds.on_progress)
        rounds.next()
        return figures

    def utility(model: Any) -> dict[str, Any]:
        figures = measuring.utility(model, rounds.on_progress)
        rounds.next()
        return figures

    base = attempt.bare_base().model
    measurements = {"base": harm(base) | utility(base)}
    before = attempt.adapted(before_adapter)
    measurements["before"] = harm(before) | _utility_of(chosen["before"])
    with randomly_pruned(before, chosen["alpha"], seed=attempt.spec.train.seed):
        measurements["random_control"] = harm(before) | utility(before)
    after = attempt.adapted(after_adapter)
    measurements["after"] = harm(after) | _utility_of(chosen["frontier"][-1])

    refusal = gate_refusal(
        measurements["after"],
        utility_before=measurements["before"]["utility"],
        gate=profile.gate,
        with_margin=False,
    )
    if refusal is not None:
        report = held_out_refused_report(attempt, measurements=measurements, reason=refusal)
        text = f"on prompts that were not used to choose the strength: {refusal}"
        raise StageError("safety_gate_failed", text, safety_report=report)

    probes = attempt.scratch / PROBES_FILE
    save_file({"logits": last_logits(after, measuring.probes())}, probes)
    key = f"{attempt.prefix(Stage.EVALUATE)}/{PROBES_FILE}"
    attempt.storage.put(key, probes)
    report = passed_report(attempt, measurements=measurements)
    output = {"probes_key": key, "probes": measuring.probes(), "report": report}
    return StageFinished(stage=Stage.EVALUATE, output=output, safety_report=report)


def _utility_of(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: figures[key] for key in ("utility", "utility_interval", "num_examples")}
