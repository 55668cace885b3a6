"""`training`, our block in a request: fields of `autoclave.spec.TrainSpec` for which OpenAI has no place.

What is given replaces the base's default; bounds and meaning are the spec's. Values are taken as they are: a
string is no number here, and no truth value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ValidationError, WithJsonSchema

from autoclave.spec import EarlyStopping, TrainSpec
from service.errors import ApiError, invalid

FIELDS = (
    "learning_rate",
    "schedule",
    "warmup_ratio",
    "weight_decay",
    "max_grad_norm",
    "max_seq_length",
    "too_long",
    "packing",
    "train_on_inputs",
    "evaluations_per_epoch",
    "early_stopping",
    "activation_checkpointing",
)
RESULT_FIELDS = (
    "steps",
    "planned_steps",
    "early_stopped",
    "best_step",
    "best_valid_loss",
    "micro_batch_tokens",
    "activation_checkpointing",
    "estimated_memory_bytes",
    "peak_memory_bytes",
)
_DEFAULTS = TrainSpec().model_dump(mode="json")


def _schema() -> dict[str, Any]:
    known = TrainSpec.model_json_schema()["properties"]
    stopping = EarlyStopping.model_json_schema()
    stopping["properties"]["evaluations_per_epoch"] = known["evaluations_per_epoch"]
    properties = {name: known[name] for name in FIELDS} | {
        "early_stopping": {"anyOf": [stopping, {"type": "null"}], "default": None}
    }
    return {"type": "object", "additionalProperties": False, "properties": properties}


Training = Annotated[dict[str, Any], WithJsonSchema(_schema())]
"""The block in a request: described here, checked by `with_training`, which knows the base."""


def with_training(
    default: TrainSpec,
    given: Mapping[str, Any] | None,
    *,
    longest: int | None = None,
    has_validation: bool,
    multiplier_chosen: bool = False,
) -> TrainSpec:
    """The base's default with what was given. `longest` is the highest `max_seq_length` of this base, if that
    is known. Raises ApiError 400 naming the field."""
    values = dict(given or {})
    unknown = next((name for name in values if name not in FIELDS), None)
    if unknown is not None:
        raise _unknown(f"training.{unknown}", FIELDS)
    if "learning_rate" in values and multiplier_chosen:
        raise invalid(
            "'training.learning_rate' and 'learning_rate_multiplier' both say how fast to learn; give one.",
            param="training.learning_rate",
        )
    _move_evaluations(values)
    length = values.get("max_seq_length")
    if longest is not None and type(length) is int and length > longest:
        raise invalid(
            f"Invalid value for 'training.max_seq_length': this base takes at most {longest} tokens.",
            param="training.max_seq_length",
        )
    if values.get("early_stopping") is not None and not has_validation:
        raise invalid(
            "'training.early_stopping' needs a 'validation_file': its loss decides when to stop.",
            param="training.early_stopping",
        )
    try:
        spec = TrainSpec.model_validate(default.model_dump() | values, strict=True)
    except ValidationError as error:
        raise _refused(error) from error
    # A base may stop early by default; a job without a validation file is then trained to its end.
    return spec if has_validation else spec.model_copy(update={"early_stopping": None})


def shown_training(train: Mapping[str, Any]) -> dict[str, Any]:
    """Of the stored spec of a job, which may be older than some fields."""
    return {name: train.get(name, _DEFAULTS[name]) for name in FIELDS}


def training_result(train_output: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the train stage did, of its output; null before it has ended."""
    if not train_output:
        return None
    return {name: train_output.get(name) for name in RESULT_FIELDS}


def _move_evaluations(values: dict[str, Any]) -> None:
    """`evaluations_per_epoch` may also stand in `early_stopping`."""
    stopping = values.get("early_stopping")
    if not isinstance(stopping, dict) or "evaluations_per_epoch" not in stopping:
        return
    values["early_stopping"] = {k: v for k, v in stopping.items() if k != "evaluations_per_epoch"}
    number = stopping["evaluations_per_epoch"]
    if values.setdefault("evaluations_per_epoch", number) != number:
        raise invalid(
            "'training.evaluations_per_epoch' and 'training.early_stopping.evaluations_per_epoch' differ; "
            "give one.",
            param="training.early_stopping.evaluations_per_epoch",
        )


def _refused(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    param = ".".join(["training", *map(str, first["loc"])])
    if first["type"] == "extra_forbidden":
        return _unknown(param, (*EarlyStopping.model_fields, "evaluations_per_epoch"))
    if first["type"] in ("model_type", "dict_type"):
        return invalid(f"Invalid value for {param!r}: must be a JSON object.", param=param)
    return invalid(f"Invalid value for {param!r}: {first['msg']}.", param=param)


def _unknown(param: str, known: tuple[str, ...]) -> ApiError:
    block = param.rpartition(".")[0]
    return invalid(
        f"Unknown parameter: {param!r}; {block!r} takes {', '.join(known)}.",
        param=param,
        code="unknown_parameter",
    )
