"""The API's description of itself (`/openapi.json`): FastAPI's, with links from what creates a thing to all
that can be done with it. Tools that follow links (schemathesis) get behind the 404s by them.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from starlette.routing import compile_path

# Which operation makes the thing that a path parameter names.
MAKERS = {
    "file_id": "/v1/files",
    "upload_id": "/v1/uploads",
    "job_id": "/v1/fine_tuning/jobs",
    "webhook_id": "/v1/webhooks",
    "project_id": "/v1/organization/projects",
    "registration_id": "/v1/organization/base_registrations",
}
# Fields of a body that name such a thing.
FIELDS = {"training_file": "/v1/files"}


def install(app: FastAPI) -> None:
    describe = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is None:
            add_links(describe())
        description: dict[str, Any] = describe()
        return description

    # FastAPI's own way to extend it.
    app.openapi = described  # type: ignore[method-assign]


def add_links(description: dict[str, Any]) -> None:
    """In place."""
    paths = description["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            for name, maker in MAKERS.items():
                if f"{{{name}}}" in path and maker in paths:
                    _link(paths[maker], operation, method, parameters={name: "$response.body#/id"})
            for name in _body_fields(description, operation) & FIELDS.keys():
                maker = FIELDS[name]
                body = {name: "$response.body#/id"}
                _link(paths[maker], operation, method, requestBody=body)


def _link(maker: dict[str, Any], target: dict[str, Any], method: str, **what: Any) -> None:
    links = maker["post"]["responses"]["200"].setdefault("links", {})
    links[f"{method}_{target['operationId']}"] = {"operationId": target["operationId"], **what}


def _body_fields(description: dict[str, Any], operation: dict[str, Any]) -> set[str]:
    content = operation.get("requestBody", {}).get("content", {})
    reference = content.get("application/json", {}).get("schema", {}).get("$ref", "")
    schema = description["components"]["schemas"].get(reference.rpartition("/")[2], {})
    return set(schema.get("properties", {}))


def methods_of(app: FastAPI, path: str) -> list[str]:
    """What may be done at this URL path, by the description."""
    found: dict[str, list[str]] = {}
    for template, operations in app.openapi()["paths"].items():
        # Parameters that take slashes are described without saying so.
        pattern = compile_path(re.sub(r"\{(model|ckpt|base)\}", r"{\1:path}", template))[0]
        if pattern.match(path):
            found[template] = sorted(method.upper() for method in operations)
    # A model id that takes slashes matches what is below a model as well; the longest says most.
    return found[max(found, key=len)] if found else []
