"""The form that makes a job: fields from a base's limits, and back to a request of the API.

A field's name is its place in the request (`training.learning_rate`), which is also what errors name. What is
left empty is not sent, and gets the base's default.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from service.catalog.model_limits import Limit, ModelLimits
from service.errors import ApiError
from service.jobs.requests import CreateJob

MAIN = ("hyperparameters.n_epochs", "hyperparameters.batch_size", "training.learning_rate")
PLAIN = ("model", "training_file", "validation_file", "suffix", "seed")
"""Fields that the template writes out, with `metadata`."""
REQUIRED = {"model": "Choose a base model.", "training_file": "Choose a file to train on."}
# In the request's own words: what these mean stands in docs/api.md.
LABELS = {
    "hyperparameters.n_epochs": ("Epochs", "How often the data is gone through."),
    "hyperparameters.batch_size": ("Batch size", "Conversations per step."),
    "training.learning_rate": ("Learning rate", "How far a step goes."),
    "hyperparameters.learning_rate_multiplier": (
        "Learning rate multiplier",
        "Of the base's own learning rate; give this or the rate.",
    ),
    "training.schedule": ("Learning rate schedule", "What becomes of it over time."),
    "training.warmup_ratio": ("Warm-up", "Share of the steps in which the learning rate rises."),
    "training.weight_decay": ("Weight decay", ""),
    "training.max_grad_norm": ("Gradient clipping", "Longest gradient that is used as it is."),
    "training.max_seq_length": ("Longest conversation", "In tokens."),
    "training.too_long": ("Longer ones", "Cut off, or refuse the job."),
    "training.packing": (
        "Packing",
        "Several short conversations in a row of the batch: faster, same result.",
    ),
    "training.train_on_inputs": ("Train on questions too", "Otherwise on answers alone."),
    "training.evaluations_per_epoch": (
        "Evaluations per epoch",
        "Of the validation file, where there is one.",
    ),
    "training.early_stopping.patience": (
        "Stop early after",
        "So many evaluations without a lower loss. Empty: never. Needs a validation file.",
    ),
    "training.early_stopping.min_delta": (
        "Lower by at least",
        "Nats per token; counts with the field before.",
    ),
    "training.activation_checkpointing": (
        "Activation checkpointing",
        "Less memory, more time, same result. auto: where the memory is too small otherwise.",
    ),
    "defence.name": ("Defence in training", "On top of sanitising, which follows in any case."),
    "defence.rho": ("Lisa: pull", "How strongly the two states hold each other."),
    "defence.alignment_steps": ("Lisa: steps on safe answers", "Before each turn of your data."),
    "defence.finetune_steps": ("Lisa: steps on your data", "In a turn."),
    "defence.strength": ("LDIFS: strength", "How strongly features are held where they were."),
    "lora.r": ("LoRA rank", "Size of the adapter."),
    "lora.lora_alpha": ("LoRA alpha", "How strongly the adapter acts."),
    "lora.lora_dropout": ("LoRA dropout", ""),
    "lora.target_modules": ("Adapted modules", "all-linear, attention, or names with commas between."),
}


@dataclass(frozen=True)
class FormField:
    name: str
    label: str
    hint: str
    default: str
    value: str
    bounds: str
    """`1 to 50`, or empty."""
    choices: tuple[str, ...]
    problem: str | None


def form_fields(
    limits: ModelLimits, values: Mapping[str, str], problems: Mapping[str, str]
) -> tuple[list[FormField], list[FormField]]:
    """The few that most people look at, and the rest."""
    made = {
        name: FormField(
            name,
            *LABELS[name],
            default=_shown(limit.default),
            value=values.get(name, ""),
            bounds=_bounds(limit),
            choices=_choices(limit),
            problem=problems.get(name),
        )
        for name, limit in _limits(limits).items()
        if name in LABELS
    }
    return [made[name] for name in MAIN], [field for name, field in made.items() if name not in MAIN]


def _limits(limits: ModelLimits) -> dict[str, Limit]:
    blocks = {
        "hyperparameters.": limits.hyperparameters,
        "training.": {name: limit for name, limit in limits.training.items() if name != "early_stopping"},
        "training.early_stopping.": {
            name: limit for name, limit in limits.early_stopping.items() if name != "evaluations_per_epoch"
        },
        "defence.": _defence_limits(limits),
        "lora.": limits.lora,
    }
    return {prefix + name: limit for prefix, block in blocks.items() for name, limit in block.items()}


def _defence_limits(limits: ModelLimits) -> dict[str, Limit]:
    """The choice, and the settings of every method that can be chosen: no two have one of the same name."""
    choice = Limit(default=limits.defence, choices=list(limits.defences))
    return {"name": choice} | {
        name: limit for settings in limits.defences.values() for name, limit in settings.items()
    }


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _choices(limit: Limit) -> tuple[str, ...]:
    if isinstance(limit.default, bool):
        return ("yes", "no")
    return tuple(limit.choices or ())


def _bounds(limit: Limit) -> str:
    low = limit.minimum if limit.minimum is not None else limit.exclusive_minimum
    high = limit.maximum if limit.maximum is not None else limit.exclusive_maximum
    above = "above " if limit.minimum is None and low is not None else ""
    below = "below " if limit.maximum is None and high is not None else ""
    if low is None or isinstance(limit.default, bool):
        return ""
    if high is None:
        return f"{above}{low:g}" if above else f"at least {low:g}"
    return f"{above}{low:g} to {below}{high:g}"


def request_of(values: Mapping[str, str]) -> tuple[CreateJob | None, dict[str, str]]:
    """The request, or what is wrong by field."""
    problems: dict[str, str] = {}
    body: dict[str, Any] = {}
    for name in PLAIN:
        if text := values.get(name, "").strip():
            body[name] = _number(text) if name == "seed" else text
    metadata, problem = _metadata(values.get("metadata", ""))
    if problem is not None:
        problems["metadata"] = problem
    elif metadata:
        body["metadata"] = metadata
    for name in LABELS:
        text = values.get(name, "").strip()
        if text:
            _put(body, name.split("."), _value(name, text))
    method = body.pop("hyperparameters", None)
    if method is not None:
        body["method"] = {"type": "supervised", "supervised": {"hyperparameters": method}}
    problems |= {name: what for name, what in REQUIRED.items() if name not in body}
    if problems:
        return None, problems
    try:
        return CreateJob.model_validate(body), {}
    except ValidationError as error:
        return None, {field_of(".".join(map(str, e["loc"]))): _plain(e["msg"]) for e in error.errors()}


def problem_of(error: ApiError) -> dict[str, str]:
    """By the field that the API's error names; under the empty name what belongs to none."""
    return {field_of(error.param or ""): error.message}


def field_of(param: str) -> str:
    """The form's field for a place in the request."""
    name = param.removeprefix("method.supervised.")
    if name.startswith("metadata"):
        return "metadata"
    if name in (*LABELS, *PLAIN):
        return name
    # A whole block was refused: its first field is the place to look.
    return next((field for field in LABELS if field.startswith(f"{name}.")), "") if name else ""


def values_of(request: Mapping[str, Any]) -> dict[str, str]:
    """What the form shows for a request of the API: where a clone begins."""
    flat = dict(_flattened(request))
    blocks = "method.supervised.hyperparameters."
    values = {name.replace(blocks, "hyperparameters."): _shown(value) for name, value in flat.items()}
    metadata = request.get("metadata") or {}
    return {name: text for name, text in values.items() if text != "auto" and name in (*LABELS, *PLAIN)} | {
        "metadata": "\n".join(f"{key}={value}" for key, value in metadata.items())
    }


def _flattened(block: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _put(body: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        body = body.setdefault(part, {})
    body[path[-1]] = value


def _value(name: str, text: str) -> Any:
    if name == "lora.target_modules":
        if text in ("all-linear", "attention"):
            return text
        return [part.strip() for part in text.split(",") if part.strip()]
    if text in ("yes", "no"):
        return text == "yes"
    return _number(text)


def _number(text: str) -> Any:
    """Text that is no number stays text, and is refused where it is checked, by name."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return text
    if not math.isfinite(value):
        return text
    return int(value) if value.is_integer() and "e" not in text.lower() and "." not in text else value


def _metadata(text: str) -> tuple[dict[str, str], str | None]:
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, sign, value = line.partition("=")
        if not sign or not key.strip():
            return {}, f"Write key=value on each line; this is not one: {line[:60]}"
        found[key.strip()] = value.strip()
    return found, None


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
