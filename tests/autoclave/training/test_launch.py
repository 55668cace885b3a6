"""Processes that are started together end together: one that dies, a caller that is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from autoclave.errors import DataError, RankLostError
from autoclave.training.launch import run_ranks
from tests.autoclave.training import rank_programs


def pids(folder: Path) -> list[int]:
    return [int((folder / f"pid-{rank}").read_text().split()[0]) for rank in (0, 1)]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RankLostError, match=r"process 1 of 2 .* SIGKILL") as caught:
        run_ranks(rank_programs.dies, tmp_path, num_processes=2)
    died_at = (tmp_path / "pid-1").stat().st_mtime
    assert time.time() - died_at < 30, "noticed at once, and not by a timeout of minutes"
    assert (caught.value.rank, caught.value.exit_code) == (1, -signal.SIGKILL)
    assert all(gone(pid) for pid in pids(tmp_path))
    groups = {int((tmp_path / f"pid-{rank}").read_text().split()[1]) for rank in (0, 1)}
    assert groups == {os.getpgrp()}, "whoever signals our group reaches them"
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "TORCHELASTIC_SIGNALS_TO_HANDLE" not in os.environ


@pytest.mark.slow
def test_what_a_process_raises_is_raised_here() -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl: line 3 at /messages: Broken\.") as caught:
        run_ranks(rank_programs.raises, num_processes=2)
    assert (caught.value.num_issues, caught.value.issues[0].fix) == (7, "Mend it.")


PROGRAM = """
import sys
from pathlib import Path
from autoclave.training.launch import run_ranks
from tests.autoclave.training import rank_programs
if __name__ == "__main__":
    run_ranks(rank_programs.waits, Path(sys.argv[1]), num_processes=2)
"""


@pytest.mark.slow
def test_ending_the_caller_ends_them(tmp_path: Path) -> None:
    """By SIGTERM to it alone: it dies of that signal, after them."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # A program of its own folder finds this package nowhere else.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    caller = subprocess.Popen([sys.executable, str(program), str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not all((tmp_path / f"pid-{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline
            assert caller.poll() is None
            time.sleep(0.1)
        time.sleep(0.1)
        caller.send_signal(signal.SIGTERM)
        assert caller.wait(60) == -signal.SIGTERM
        assert all(gone(pid) for pid in pids(tmp_path))
    finally:
        caller.kill()
