"""Run a command that cannot outlive the process that started it.

`python -m workers.leash PARENT_PID COMMAND...` asks the kernel to kill this process when its parent
dies, then becomes COMMAND; the request survives the exec. A separate program and not a `preexec_fn`,
because Python code between fork and exec can deadlock in a parent that has threads.

The kernel watches the *thread* that started the child, so start children from a thread that stays.
Only Linux has this (prctl(2), PR_SET_PDEATHSIG); elsewhere a killed parent is noticed by a child when
it next writes to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def leashed(command: list[str]) -> list[str]:
    """`command`, to be started by this process and to die with it."""
    return [sys.executable, "-m", "workers.leash", str(os.getpid()), *command]


def tie_to_parent(parent_pid: int) -> None:
    """Exit now if the parent is already gone; be killed when it goes."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit(f"the parent process {parent_pid} has already ended")


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - an argument list of our own, no shell
