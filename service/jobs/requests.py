"""The create-job request, as OpenAI's client sends it, plus `lora`, `training`, `defence`. Shapes, bounds.

An unknown key is refused: a misspelled hyper-parameter must never pass as a default. What the
request refers to (model, files) is checked in `service.jobs.creation`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from autoclave.spec import LoraSpec
from service.jobs.defence import Defence
from service.jobs.integrations import MAX_INTEGRATIONS, Integration
from service.jobs.training import Training
from service.wire import WHOLE, Request, Text

Auto = Literal["auto"]
MAX_TTL_SECONDS = 365 * 24 * 3600


def _auto_or_integer(low: int, high: int) -> PlainValidator:
    def check(value: object) -> object:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None or value == "auto" or (type(value) is int and low <= value <= high):
            return value
        raise ValueError(f"must be 'auto' or an integer from {low} to {high}")

    number = {"type": "integer", "minimum": low, "maximum": high}
    return PlainValidator(check, json_schema_input_type=Annotated[Any, WithJsonSchema(_auto_or(number))])


def _auto_or_positive(value: object) -> object:
    if value is None or value == "auto":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf:
        return value
    raise ValueError("must be 'auto' or a number above 0")


def _auto_or(number: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "const": "auto"}, number, {"type": "null"}]}


_POSITIVE = _auto_or({"type": "number", "exclusiveMinimum": 0})


class Hyperparameters(Request):
    """None is "not given", which means the same as "auto"."""

    n_epochs: Annotated[int | Auto | None, _auto_or_integer(1, 50)] = None
    batch_size: Annotated[int | Auto | None, _auto_or_integer(1, 256)] = None
    learning_rate_multiplier: Annotated[
        float | Auto | None,
        PlainValidator(_auto_or_positive, json_schema_input_type=Annotated[Any, WithJsonSchema(_POSITIVE)]),
    ] = None


class Supervised(Request):
    hyperparameters: Hyperparameters | None = None


class Method(Request):
    """Blocks of methods that `type` does not name are ignored: OpenAI's client may send them all."""

    type: Annotated[Text, Field(json_schema_extra={"enum": ["supervised"]})]
    supervised: Supervised | None = None
    dpo: Any = None
    reinforcement: Any = None


class AdapterExpiresAfter(Request):
    """As `expires_after` of a file, counted from the end of the job."""

    anchor: Literal["released_at"]
    seconds: Annotated[int, Field(ge=3600, le=MAX_TTL_SECONDS, strict=True), WHOLE]


class CreateJob(Request):
    model: Text
    training_file: Text
    validation_file: Text | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True), WHOLE] | None = None
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    integrations: Annotated[list[Integration], Field(max_length=MAX_INTEGRATIONS)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    """Deprecated by OpenAI in favour of `method`, still sent by much code."""
    adapter_expires_after: AdapterExpiresAfter | None = None
    """Extension: how long the released adapter is kept; the operator's default without it."""
    lora: Annotated[dict[str, Any], WithJsonSchema(LoraSpec.model_json_schema())] | None = None
    """Extension (`extra_body={"lora": {...}}`): fields of `autoclave.spec.LoraSpec` that replace the
    base's defaults."""
    training: Training | None = None
    """Extension: how it is trained, see `service.jobs.training`."""
    defence: Defence | None = None
    """Extension: what training minimises, see `service.jobs.defence`."""


class RetryJob(CreateJob):
    """What should be different this time; null takes a field away."""

    model: Text | None = None  # type: ignore[assignment]
    training_file: Text | None = None  # type: ignore[assignment]
