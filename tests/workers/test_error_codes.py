"""docs/api.md lists every code that a failed job can carry."""

from __future__ import annotations

import re
from pathlib import Path

from autoclave.errors import ModelError, NonFiniteLossError
from service.jobs.error_kinds import KINDS

ROOT = Path(__file__).parents[2]


def test_every_code_of_a_failed_job_is_documented() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "workers").rglob("*.py"))
    used = set(re.findall(r'StageError\(\s*"([a-z_]+)"', source))
    used |= set(re.findall(r'Failed\(\s*code="([a-z_]+)"', source))
    used |= {f"invalid_{param}" for param in re.findall(r'data_errors_of\([\w.]+, "([a-z_]+)"\)', source)}
    used |= {"worker_lost", "judge_unavailable", "internal_error", ModelError.code, NonFiniteLossError.code}
    assert {"safety_gate_failed", "out_of_memory", "invalid_validation_file"} <= used
    section = (ROOT / "docs/api.md").read_text().split("A failed job says why in `error.code`:")[1]
    table = re.findall(r"^\| (`.+?`) \|", section, flags=re.MULTILINE)
    documented = {code for cell in table for code in re.findall(r"`([a-z_]+)`", cell)}
    assert used == documented
    assert used == KINDS.keys()
    kinds = re.findall(r"^\| (`.+?`) \| (\w+) \|", section, flags=re.MULTILINE)
    assert {code: kind for cell, kind in kinds for code in re.findall(r"`([a-z_]+)`", cell)} == KINDS
