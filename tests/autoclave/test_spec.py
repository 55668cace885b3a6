"""Hyper-parameters: bounds, typos, immutability."""

from typing import Any

import pytest
from pydantic import ValidationError

from autoclave.spec import JobSpec, LoraSpec, SanitizeSpec, TrainSpec


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TrainSpec, {"n_epoch": 3}),
        (TrainSpec, {"learning_rate": 0}),
        (TrainSpec, {"schedule": "step"}),
        (LoraSpec, {"r": 0}),
        (LoraSpec, {"lora_dropout": 1.0}),
        (LoraSpec, {"target_modules": []}),
        (SanitizeSpec, {"alphas": []}),
        (SanitizeSpec, {"alphas": [0.2, 0.1]}),
        (SanitizeSpec, {"alphas": [0.1, 0.1]}),
        (SanitizeSpec, {"alphas": [0.1, 1.0]}),
    ],
)
def test_what_cannot_work_is_refused(model: Any, values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model.model_validate(values)


def test_a_job_survives_json_and_cannot_be_changed() -> None:
    spec = JobSpec(lora=LoraSpec(target_modules="all-linear"), train=TrainSpec(n_epochs=2))
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    with pytest.raises(ValidationError):
        spec.train.n_epochs = 3
