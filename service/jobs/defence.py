"""`defence`, our block in a request: what training minimises. One of the methods of `autoclave.spec` for the
fine-tuning stage, by its name, with its settings.

OpenAI's `method` stays what it is: all of these are supervised. What is left out is the base's default where
that has the same name, else the method's own. Values are taken as they are: a string is no number here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from autoclave.spec import FinetuneMethod, LdifsSpec, LisaSpec, SftSpec, Spec
from service.errors import ApiError, invalid
from service.models import AlignedBase

SPECS: dict[str, type[Spec]] = {"sft": SftSpec, "lisa": LisaSpec, "ldifs": LdifsSpec}
_FINETUNE: TypeAdapter[FinetuneMethod] = TypeAdapter(FinetuneMethod)
_ALIGN = ("vaccine", "repnoise", "booster")


def settings_of(name: str) -> tuple[str, ...]:
    return tuple(field for field in SPECS[name].model_fields if field != "name")


def _schema() -> dict[str, Any]:
    return {"anyOf": [spec.model_json_schema() | {"required": ["name"]} for spec in SPECS.values()]}


Defence = Annotated[dict[str, Any], WithJsonSchema(_schema())]
"""The block in a request: described here, checked by `with_defence`, which knows the base."""


def unavailable(base: AlignedBase) -> dict[str, str]:
    """Why jobs on this base cannot have a method, by its name; in words that a tenant may read. Whether the
    architecture allows one is known of bases that `autoclave base add` measured; of others the prepare stage
    finds out."""
    reasons: dict[str, str] = {}
    if base.safety_profile.get("alignment") is None:
        reasons["lisa"] = "its operator has provided no alignment data for this base"
    known = ((base.measurements or {}).get("model") or {}).get("defences")
    for name in SPECS:
        if known is not None and name not in known:
            reasons[name] = "this base has none of the layers whose features it compares"
    return reasons


def with_defence(
    default: FinetuneMethod, given: Mapping[str, Any] | None, *, not_here: Mapping[str, str]
) -> FinetuneMethod:
    """The base's default, or what was given. `not_here` is what `unavailable` says of the base. Raises
    ApiError 400 naming the field."""
    if given is None:
        return default
    name = given.get("name")
    if name in _ALIGN:
        raise invalid(
            f"{name!r} is done to a base by its operator and not in a job: choose a model that was aligned "
            "with it. GET /v1/models shows the 'alignment_method' of each.",
            param="defence.name",
            code="unsupported_defence",
        )
    if not isinstance(name, str) or name not in SPECS:
        code = "missing_required_parameter" if name is None else "invalid_value"
        raise invalid(
            f"'defence.name' must be one of {', '.join(map(repr, SPECS))}.", param="defence.name", code=code
        )
    if name in not_here:
        raise invalid(
            f"Defence {name!r} is not possible with this model: {not_here[name]}.",
            param="defence.name",
            code="unsupported_defence",
        )
    settings = default.model_dump() if default.name == name else {}
    try:
        return _FINETUNE.validate_python(settings | dict(given), strict=True)
    except ValidationError as error:
        raise _refused(error, name) from error


def shown_defence(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Of the stored spec of a job, which may be older than the field."""
    found = spec.get("defence")
    return {"name": "sft"} if found is None else dict(found)


def _refused(error: ValidationError, name: str) -> ApiError:
    first = error.errors()[0]
    param = ".".join(["defence", *map(str, first["loc"][1:])])  # the first place is the method's name
    if first["type"] == "extra_forbidden":
        known = ", ".join(settings_of(name)) or "no settings"
        return invalid(
            f"Unknown parameter: {param!r}; {name!r} takes {known}.", param=param, code="unknown_parameter"
        )
    return invalid(f"Invalid value for {param!r}: {first['msg']}.", param=param)
