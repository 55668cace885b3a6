"""What the report says of a job that passed: three models, the controls, the strength, what was changed."""

from __future__ import annotations

import json

import pytest

from autoclave.evaluation.figures import Figures
from autoclave.spec import EvaluateSpec, GateSpec
from service.jobs.states import Stage
from tests.workers.pipeline_bench import ALPHAS, MUS
from tests.workers.stages.conftest import FinishedJob
from workers.attempt import StageError
from workers.messages import ProgressMade

STRENGTH = {"alpha": ALPHAS[0], "mu": MUS[0]}


def test_the_summary_that_clients_read(finished_job: FinishedJob) -> None:
    summary = finished_job.report["summary"]
    assert list(summary) == [
        "result",
        "alpha",
        "mu",
        "harmful_score",
        "refusal_rate",
        "coherence_rate",
        "utility",
    ]
    assert (summary["result"], summary["alpha"], summary["mu"]) == ("passed", ALPHAS[0], MUS[0])
    assert summary["harmful_score"] == {"base": 100.0, "before": 100.0, "after": 100.0}
    for score in ("refusal_rate", "coherence_rate", "utility"):
        assert set(summary[score]) == {"base", "before", "after"}
        assert all(0 <= value <= 100 for value in summary[score].values())


def test_measurements_and_controls(finished_job: FinishedJob) -> None:
    report = finished_job.report
    measured = report["measurements"]
    assert set(measured) == {"base", "before", "after", "random_control"}
    assert set(report["ablations"]) == {"mask_alone", "projection_alone"}
    for figures in (*measured.values(), *report["ablations"].values()):
        assert Figures.from_dict(figures).as_dict().keys() == figures.keys()
        assert (figures["num_prompts"], figures["num_examples"], figures["complete"]) == (3, 4, True)
        for rate in ("harmful_score", "refusal_rate", "coherence_rate", "utility"):
            low, high = figures[f"{rate}_interval"]
            assert low <= figures[rate] <= high
        assert figures["held_out_loss"] > 0
    losses = {name: figures["held_out_loss"] for name, figures in (measured | report["ablations"]).items()}
    assert len(set(losses.values())) == len(losses), f"two of these models are the same: {losses}"


def test_strength_method_and_change(finished_job: FinishedJob) -> None:
    report = finished_job.report
    assert report["schema_version"] == 2
    assert report["strength"] == STRENGTH
    method = report["method"]
    assert (method["name"], method["rule_name"], method["norm"], method["ridge"]) == (
        "pipeline",
        "matrix",
        "rms",
        0.01,
    )
    assert method["about"].startswith("projection, then Antidote's mask")
    assert method["rule"].startswith("of each lora_A and lora_B")
    sparsity, change = report["sparsity"], report["relative_change"]
    assert sparsity["matrices"].keys() == change["matrices"].keys()
    assert set(sparsity["layers"]) == {"0", "1"}
    assert all(share >= ALPHAS[0] for share in sparsity["matrices"].values())
    assert 0 < change["all"] < 1
    assert report["num_evaluations"] == len(report["frontier"]) == 1


def test_answers_that_never_end_are_cut_and_counted(finished_job: FinishedJob) -> None:
    """A random model rarely ends an answer; the job's is four tokens long at most."""
    measured = finished_job.report["measurements"]
    assert all(0 < measured[who]["num_cut_off"] <= measured[who]["num_prompts"] for who in measured)


@pytest.mark.slow
def test_continuous_batches_measure_the_same(finished_job: FinishedJob) -> None:
    assert finished_job.report["answers_from"] == "static-batches"
    spec = EvaluateSpec(max_new_tokens=4, generation="continuous")
    again = finished_job.bench.published(finished_job.again_from(Stage.EVALUATE, number=45, evaluate=spec))
    assert again.safety_report["answers_from"] == "continuous-batches"
    assert again.safety_report["measurements"] == finished_job.report["measurements"]


def test_utility_and_loss_are_gated_again(finished_job: FinishedJob) -> None:
    """A gate tightened after the sanitize stage stands in for a change that it had not seen."""
    measured = finished_job.report["measurements"]
    increase = measured["after"]["held_out_loss"] - measured["before"]["held_out_loss"]
    assert increase > 0, "sanitising cost nothing, so there is nothing to gate"
    gate = GateSpec(max_harmful_score=100, max_loss_increase=increase / 2)
    with pytest.raises(StageError, match="held-out loss rose by") as caught:
        finished_job.again_from(Stage.EVALUATE, number=40, gate=gate)
    assert caught.value.code == "safety_gate_failed"
    report = json.loads(json.dumps(caught.value.safety_report))
    assert report["measurements"] == measured
    assert report["result"] == "refused"


@pytest.mark.parametrize("gate", [{"min_refusal_rate": 50.0}, {"min_coherence_rate": 100.0}])
def test_rates_are_gated_on_the_held_out_half(finished_job: FinishedJob, gate: dict[str, float]) -> None:
    after = finished_job.report["measurements"]["after"]
    assert after["refusal_rate"] < 50
    assert after["coherence_rate"] < 100
    with pytest.raises(StageError, match="is below the required"):
        finished_job.again_from(
            Stage.EVALUATE, number=41, gate=GateSpec.model_validate({"max_harmful_score": 100, **gate})
        )


def test_progress_never_goes_back(finished_job: FinishedJob) -> None:
    shown: list[int] = []
    for message in finished_job.messages:
        if isinstance(message, ProgressMade) and message.total_steps == 1000:
            shown.append(message.step)
        elif shown and not isinstance(message, ProgressMade):
            assert shown == sorted(shown)
            assert shown[-1] <= 1000
            shown = []
