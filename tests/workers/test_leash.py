"""`kill -9` of a process takes the leashed ones along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from workers.leash import leashed

_PARENT = """
import subprocess, sys, time
from workers.leash import leashed
sleeper = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
child = subprocess.Popen(leashed(sleeper), stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prctl exists only on Linux")
def test_killing_the_parent_kills_the_child() -> None:
    with subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait(10)
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.02)


def test_a_parent_that_is_already_gone() -> None:
    command = [sys.executable, "-m", "workers.leash", str(os.getpid() + 1), "true"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "already ended" in run.stderr


def test_the_command_keeps_its_arguments_and_exit_status() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "$HOME"]
    run = subprocess.run(leashed(command), capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (7, "['a b', '$HOME']\n")
