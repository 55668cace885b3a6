"""The fault suite itself, very small: three jobs, four faults, everything real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autoclave.microcosm.shipped import shipped_world

# About a minute of processor, most of it children that import torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A worker killed in training, a job paused, the broker wiped, the database crashed.
SEED = 24702


def test_a_few_jobs_under_a_few_faults(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos", "--jobs", "3", "--faults", "4", "--seed", str(SEED)]
    command += ["--workers", "2", "--open", "3", "--minutes", "10", "--world", str(shipped_world())]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], check=False, capture_output=True, text=True, timeout=840
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "chaos.json").read_text())
    assert sum(result["jobs"]["ended"].values()) == 3
    assert sum(row["planned"] for row in result["faults"].values()) == 4
    # A stage that no job enters any more cannot be hit; the others do not depend on the jobs.
    assert sum(row["injected"] for row in result["faults"].values()) > 0, result["log"]
    assert not any(result["audit"].values())
    assert "**0 violations.**" in (tmp_path / "chaos.md").read_text()
