from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.spec import SafetyProfile
from service.catalog.model_limits import limits_of
from service.dashboard.job_form import LABELS, PLAIN, field_of, form_fields, problem_of, request_of, values_of
from service.db import Database
from service.errors import ApiError
from tests.builders import make_base

BASE = {"model": "base", "training_file": "file-1"}


def test_what_is_left_empty_is_not_sent() -> None:
    request, problems = request_of({**BASE, "suffix": "", "hyperparameters.n_epochs": " ", "metadata": "\n"})
    assert problems == {}
    assert request is not None
    assert request.model_dump(exclude_unset=True) == BASE


def test_every_field_has_its_place_in_the_request() -> None:
    request, problems = request_of(
        {
            **BASE,
            "seed": "7",
            "metadata": "team=search\nnote = a=b",
            "hyperparameters.n_epochs": "2",
            "training.learning_rate": "1e-4",
            "training.packing": "yes",
            "training.schedule": "linear",
            "training.early_stopping.patience": "3",
            "lora.r": "8",
            "lora.target_modules": "q_proj, v_proj",
        }
    )
    assert problems == {}
    assert request is not None
    assert request.model_dump(exclude_unset=True) == {
        **BASE,
        "seed": 7,
        "metadata": {"team": "search", "note": "a=b"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
        "training": {
            "learning_rate": 1e-4,
            "packing": True,
            "schedule": "linear",
            "early_stopping": {"patience": 3},
        },
        "lora": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    }


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("seed", "-1"),
        ("seed", "many"),
        ("suffix", "no spaces"),
        ("hyperparameters.n_epochs", "51"),
        ("hyperparameters.batch_size", "1.5"),
        ("metadata", "no equals sign"),
        ("metadata", "=value"),
    ],
)
def test_a_problem_stands_at_its_field(field: str, text: str) -> None:
    request, problems = request_of({**BASE, field: text})
    assert request is None
    assert list(problems) == [field]


def test_what_is_missing_is_named() -> None:
    assert set(request_of({})[1]) == {"model", "training_file"}


@pytest.mark.parametrize(
    ("param", "field"),
    [
        ("training.learning_rate", "training.learning_rate"),
        ("method.supervised.hyperparameters.n_epochs", "hyperparameters.n_epochs"),
        ("metadata.team", "metadata"),
        ("training.early_stopping", "training.early_stopping.patience"),
        ("validation_file", "validation_file"),
        ("something.else", ""),
        ("", ""),
    ],
)
def test_errors_of_the_api_find_their_field(param: str, field: str) -> None:
    assert field_of(param) == field
    assert problem_of(ApiError(400, "wrong", param=param or None)) == {field: "wrong"}


def test_every_limit_of_a_base_is_in_the_form(database: Database) -> None:
    with database.transaction() as session:
        profile = SafetyProfile(version="1", realign="/r", harmful_eval="/h", judge="refusal", alignment="/a")
        limits = limits_of(make_base(session, safety_profile=profile))
    main, advanced = form_fields(limits, {"lora.r": "8"}, {"lora.r": "too small"})
    fields = {field.name: field for field in (*main, *advanced)}
    assert fields.keys() == LABELS.keys()
    assert fields["hyperparameters.n_epochs"].default == "3"
    assert fields["hyperparameters.n_epochs"].bounds == "1 to 50"
    assert fields["training.packing"].choices == ("yes", "no")
    assert fields["training.activation_checkpointing"].choices == ("auto", "on", "off")
    assert fields["defence.name"].choices == ("sft", "lisa", "ldifs")
    assert fields["defence.rho"].bounds == "0 to 10000"
    assert fields["training.learning_rate"].bounds == "above 0 to 1"
    assert (fields["lora.r"].value, fields["lora.r"].problem) == ("8", "too small")


TEXTS: dict[str, st.SearchStrategy[str]] = {
    "seed": st.integers(0, 2**31 - 1).map(str),
    "suffix": st.text("abc.-_9", min_size=1, max_size=20),
    "hyperparameters.n_epochs": st.integers(1, 50).map(str),
    "training.learning_rate": st.floats(1e-6, 1.0).map(lambda x: f"{x:g}"),
    "training.packing": st.sampled_from(["yes", "no"]),
    "training.too_long": st.sampled_from(["truncate", "refuse"]),
    "lora.target_modules": st.sampled_from(["all-linear", "q_proj", "q_proj, k_proj"]),
}


@given(st.fixed_dictionaries({}, optional=TEXTS))
def test_a_clone_fills_the_form_as_it_was(values: dict[str, Any]) -> None:
    request, problems = request_of({**BASE, **values})
    assert problems == {}
    assert request is not None
    again = values_of(request.model_dump(mode="json", exclude_none=True))
    assert request_of(again)[0] == request
    assert again.keys() <= {*LABELS, *PLAIN, "metadata"}


@given(st.dictionaries(st.sampled_from([*LABELS, *PLAIN, "metadata"]), st.text(max_size=30)))
def test_whatever_is_typed_is_a_request_or_a_problem(values: dict[str, str]) -> None:
    request, problems = request_of(values)
    assert (request is None) == bool(problems)
