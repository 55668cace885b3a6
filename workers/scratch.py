"""The folder in which one worker process keeps the scratch folders of its jobs.

Named after host and process, so that workers may share a disk; at start the folders of processes of
this host that are gone are removed: after `kill -9` they hold unsanitised weights.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path


def own_folder(work_dir: Path) -> Path:
    """Remove what dead workers of this host left behind and make an empty folder for this one."""
    host = "".join(c if c.isalnum() else "_" for c in socket.gethostname())
    work_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in work_dir.glob(f"{host}-*"):
        number = folder.name.removeprefix(f"{host}-")
        if number.isdigit() and (int(number) == os.getpid() or not _alive(int(number))):
            shutil.rmtree(folder, ignore_errors=True)
    own = work_dir / f"{host}-{os.getpid()}"
    own.mkdir(mode=0o700)
    return own


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
