"""Every method sanitises a job's adapter, says what it did, and keeps masks and norms to itself."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load

from autoclave.spec import SanitizeSpec
from service.jobs.states import Stage
from tests.workers.pipeline_bench import ALPHAS, MUS, outputs, unpack
from tests.workers.stages.conftest import FinishedJob

PRIVATE = {"masks.safetensors", "input_norms.safetensors"}


def stored_names(job: FinishedJob, prefix: str) -> set[str]:
    return {key.rpartition("/")[2] for key in job.storage.keys(prefix)}


def test_masks_and_norms_stay_private(finished_job: FinishedJob) -> None:
    """The norms are means over the operator's prompts."""
    prefix = finished_job.sanitized["prefix"]
    assert prefix.startswith("private/ftjob-1/")
    assert stored_names(finished_job, prefix) >= PRIVATE
    masks = load(b"".join(finished_job.storage.stream(f"{prefix}/masks.safetensors")))
    assert len(masks) > 0

    released = unpack(finished_job.storage, finished_job.bench.published(finished_job.messages))
    assert not PRIVATE & set(released)
    assert b"norms" not in released["sanitization.json"]
    assert set(json.loads(released["sanitization.json"])["sha256"]) == {
        "base",
        "adapter_in",
        "adapter_out",
        "realign_data",
    }


def test_what_the_stage_hands_on(finished_job: FinishedJob) -> None:
    sanitized = finished_job.sanitized
    assert sanitized["strength"] == {"alpha": ALPHAS[0], "mu": MUS[0]}
    assert sanitized["num_evaluations"] == 1
    [entry] = sanitized["frontier"]
    assert entry == sanitized["chosen"] | sanitized["strength"] | {"refused": None}
    record = sanitized["record"]
    assert (record["method"], record["alpha"], record["mu"]) == ("pipeline", ALPHAS[0], MUS[0])
    assert record["user_examples"] == 12
    assert record["realign_examples"] == 8


@pytest.mark.parametrize(
    ("method", "strength", "private"),
    [
        ("antidote", {"alpha": 0.1, "mu": None}, PRIVATE),
        ("antidote-protected", {"alpha": 0.1, "mu": None}, PRIVATE),
        ("projection", {"alpha": None, "mu": 1.0}, set()),
    ],
)
def test_the_other_methods(
    finished_job: FinishedJob, method: str, strength: dict[str, float | None], private: set[str]
) -> None:
    spec = SanitizeSpec.model_validate({"method": method, "alphas": ALPHAS, "mus": MUS})
    number = 10 + len(method)
    messages = finished_job.again_from(Stage.SANITIZE, number=number, sanitize=spec)
    sanitized = outputs(messages)["sanitize"]
    assert sanitized["strength"] == strength
    assert stored_names(finished_job, sanitized["prefix"]) & PRIVATE == private

    published = finished_job.bench.published(messages)
    report = published.safety_report
    assert report["method"]["name"] == method
    assert report["ablations"] is None
    pruned = strength["alpha"] is not None
    assert (report["measurements"]["random_control"] is not None) == pruned
    assert (report["sparsity"]["pruned_fraction"] > 0) == pruned
    assert report["relative_change"]["all"] > 0
    assert not PRIVATE & set(unpack(finished_job.storage, published))
