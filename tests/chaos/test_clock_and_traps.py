"""What is done to a process from within: its clock, and the places where it kills itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chaos
from chaos.traps import TRAPS, spring

CLOCK = Path(chaos.__file__).parent / "clock"


def _ask(clock_file: Path | None) -> float:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(CLOCK)}
    if clock_file is not None:
        environment["PYTHON_CHAOS_CLOCK"] = str(clock_file)
    command = [sys.executable, "-c", "import time; print(time.time())"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return float(said) - time.time()


def test_the_clock_is_shifted_by_what_the_file_says(tmp_path: Path) -> None:
    clock_file = tmp_path / "clock"
    assert abs(_ask(None)) < 60
    assert abs(_ask(clock_file)) < 60, "there is no file yet"
    clock_file.write_text("-3600")
    assert -3660 < _ask(clock_file) < -3540


def test_a_trap_goes_off_once(tmp_path: Path) -> None:
    spring(tmp_path, "api-after-commit")  # not armed
    (tmp_path / "api-after-commit").touch()
    code = f"from pathlib import Path; from chaos.traps import spring; spring(Path({str(tmp_path)!r}), "
    code += "'api-after-commit')"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    assert subprocess.run(command, check=False).returncode == 0


def test_traps_are_set_around_what_is_there() -> None:
    """In a process of its own: setting them changes classes."""
    code = (
        "from pathlib import Path; from chaos import traps; from sqlalchemy.orm import Session\n"
        "from workers.record import JobRecord; from workers.bells import Bells; folder = Path('.')\n"
        "traps._set_api(folder); traps._set_worker(folder); traps._set_maintenance(folder)\n"
        "assert Session.dispatch.after_commit; assert JobRecord.conclude.__wrapped__\n"
        "assert Bells.__call__.__wrapped__\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(TRAPS) == {"api", "worker", "maintenance"}
