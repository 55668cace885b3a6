"""What a generator of random requests cannot guess: a dataset, a base, a key that was not used before."""

from __future__ import annotations

import uuid
from typing import Any

import schemathesis
from schemathesis.generation.modes import GenerationMode

from tests.builders import BASE_ID, dataset

REGISTERED = ("alignment_method", "device", "worker_class")
UNLIKELY = ("validation_file", "integrations", "hyperparameters", "method")


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case, kwargs: Any) -> None:
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = uuid.uuid4().hex
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if not isinstance(case.body, dict):
        return
    if case.operation.label == "POST /v1/files":
        case.body["file"] = dataset(tag=uuid.uuid4().hex).decode()
    if case.operation.label == "POST /v1/organization/base_registrations":
        case.body = {
            **{name: value for name, value in case.body.items() if name in REGISTERED},
            "name": f"acme/{uuid.uuid4().hex}",
            "source": "acme/tiny",
            "revision": "main",
            "profile_of": BASE_ID,
        }
    if isinstance(case.body.get("model"), str):
        case.body["model"] = BASE_ID
    if str(case.body.get("training_file")).startswith("file-"):
        # Came by a link. With random values beside it no job would ever be made.
        for name in UNLIKELY:
            case.body.pop(name, None)
