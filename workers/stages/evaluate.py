"""Measures base, before, after and the controls on prompts that chose nothing, and asks the gate again."""

from __future__ import annotations

from safetensors.torch import save_file

from autoclave.evaluation.figures import Figures
from autoclave.modelling.export_gate import last_logits
from autoclave.sanitizing.controls import measure_controls
from autoclave.sanitizing.gate import gate_refusal
from autoclave.sanitizing.strengths import Strength
from service.jobs.states import Stage
from workers.attempt import Attempt, StageError
from workers.judging import with_second_opinion
from workers.messages import StageFinished
from workers.profile_files import realignment, safety_evaluation
from workers.report import Measurements, held_out_refused_report, passed_report, waived_report
from workers.sanitizers import user_examples

PROBES_FILE = "probes.safetensors"


def evaluate(attempt: Attempt) -> StageFinished:
    """Raises StageError safety_gate_failed, with the report, if the held-out prompts refute the choice. If an
    operator waived the gate, the report says what was missed, and the job goes on.

    Utility before and after are those of the sanitize stage: the same adapters on the same file.
    """
    outputs = attempt.outputs[Stage.SANITIZE.value]
    before_adapter = attempt.stored_adapter(Stage.TRAIN)
    after_adapter = attempt.stored_adapter(Stage.SANITIZE)
    evaluation, spec = safety_evaluation(attempt), attempt.profile.sanitize
    rounds = attempt.reporter.rounds(8 if spec.method == "pipeline" else 4)

    trained = attempt.adapted(before_adapter)
    watched, second = with_second_opinion(attempt, evaluation)
    before = watched.measure(
        trained,
        "held_out",
        utility_from=Figures.from_dict(outputs["before"]),
        on_progress=rounds.on_progress,
    )
    disagreements = {"before": second.disagreement()} if second else {}
    rounds.next()
    controls = measure_controls(
        trained,
        spec,
        Strength(**outputs["strength"]),
        evaluation,
        harmful=realignment(attempt).examples,
        user=user_examples(attempt, spec),
        seed=attempt.spec.train.seed,
        batch_tokens=attempt.profile.evaluate.batch_tokens,
        on_progress=rounds.on_progress,
        on_pass=rounds.next,
    )
    sanitized = attempt.adapted(after_adapter)
    after = watched.measure(
        sanitized,
        "held_out",
        utility_from=Figures.from_dict(outputs["chosen"]),
        on_progress=rounds.on_progress,
    )
    if second:
        disagreements["after"] = second.disagreement()
    rounds.next()
    measurements = Measurements(
        before=before,
        after=after,
        base=controls.base,
        random_control=controls.random_control,
        ablations=controls.ablations,
        disagreements=disagreements,
        answers_from=watched.generators.name,
    )

    refusal = gate_refusal(after, before=before, gate=attempt.profile.gate, with_margin=False)
    missed = outputs.get("missed")  # not in what an older version wrote
    assert missed is None or attempt.order.gate_waived, "the sanitize stage let pass what the gate refused"
    if refusal is not None and attempt.order.gate_waived is None:
        report = held_out_refused_report(attempt, measurements, reason=str(refusal))
        text = f"on prompts that were not used to choose the strength: {refusal}"
        raise StageError("safety_gate_failed", text, safety_report=report)

    probe_ids = evaluation.probes()
    probes = attempt.scratch / PROBES_FILE
    save_file({"logits": last_logits(sanitized, probe_ids)}, probes)
    key = f"{attempt.prefix(Stage.EVALUATE)}/{PROBES_FILE}"
    attempt.storage.put(key, probes)
    if refusal is not None:
        missed = f"on prompts that were not used to choose the strength: {refusal}"
    if missed is None:
        report = passed_report(attempt, measurements)
    else:
        report = waived_report(attempt, measurements, reason=missed)
    output = {"probes_key": key, "probes": probe_ids, "report": report}
    return StageFinished(stage=Stage.EVALUATE, output=output, safety_report=report)
