"""docs/api.md lists every route and every error code that the code has, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from autoclave.errors import DataError
from service.app import create_app
from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "api.md").read_text()


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    app = create_app(Settings(database_url="sqlite:////never/opened.db", storage_url="file:///never/opened"))
    return app.openapi()


def test_routes(description: dict[str, Any]) -> None:
    routes = {
        f"{method.upper()} {path}"
        for path, operations in description["paths"].items()
        for method in operations
    }
    assert set(re.findall(r"^\| `((?:GET|POST|DELETE) /\S+)` \|", DOCUMENT, re.MULTILINE)) == routes


def test_error_codes() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    # Arguments and defaults, not the class attributes that operators read. "worker_lost" ends a job;
    # every other one answers a request.
    used = set(re.findall(r'\bcode(?:: str = |=)"([a-z_]+)"', source)) - {"worker_lost"}
    table = DOCUMENT.split("## Errors")[1]
    documented = {
        code
        for cell in re.findall(r"^\| \d{3} \| (.+?) \|", table, re.MULTILINE)
        for code in re.findall(r"`([a-z_]+)`", cell)
    }
    assert documented == used | {DataError.code}


def test_the_description_promises_only_what_is_answered(description: dict[str, Any]) -> None:
    """FastAPI describes a 422 of its own shape by default; ours is a 400 of OpenAI's."""
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            assert "422" not in operation["responses"], f"{method} {path}"
    assert "HTTPValidationError" not in description["components"]["schemas"]
