"""docs/operations.md describes every field of a safety profile, docs/api.md every field of a report."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from autoclave.spec import EvaluateSpec, GateSpec, SafetyProfile, SanitizeSpec, ScreenSpec
from workers import report

DOCS = Path(__file__).parents[2] / "docs"


def documented(file: str, heading: str) -> set[str]:
    section = (DOCS / file).read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", section, flags=re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([\w.]+)`", cell)}


def test_every_field_of_a_profile_is_documented() -> None:
    nested = {"sanitize": SanitizeSpec, "evaluate": EvaluateSpec, "gate": GateSpec, "screen": ScreenSpec}
    fields = set(SafetyProfile.model_fields) - set(nested)
    fields |= {f"{name}.{field}" for name, spec in nested.items() for field in spec.model_fields}
    assert documented("operations.md", "Adding a base model") == fields


def test_the_example_profile_is_valid() -> None:
    [example] = re.findall(r"```json\n(.+?)```", (DOCS / "operations.md").read_text(), flags=re.DOTALL)
    SafetyProfile.model_validate(json.loads(example))


def test_every_field_of_a_report_is_documented() -> None:
    fields = set(re.findall(r'^        "(\w+)": ', inspect.getsource(report._report), flags=re.MULTILINE))
    assert {"schema_version", "summary", "versions"} <= fields
    assert documented("api.md", "The safety report") == fields - {"schema_version"} | {"model_id"}
