"""A fork server without torch, and what it forks: `python -m tests.workers.forking.scripted FD SECONDS HOW`.

The real server, channel, leash and signals; only what is kept and what a job does are small. An order is a
JSON file that says what to do; a fresh process does the same: `.. scripted fresh ORDER FD`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.forking.server import CannotForkError, ForkServer
from workers.messages import Noted, encode


def facts() -> dict[str, Any]:
    """What a process may not have from another one."""
    signals = {number: str(signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGPIPE)}
    files = []
    for number in range(3, 256):
        with suppress(FileNotFoundError):
            files.append(os.readlink(f"/proc/self/fd/{number}").split(":")[0])
    return {
        "leads": os.getpid() == os.getsid(0) == os.getpgid(0),
        "environment": dict(os.environ),
        "stdin": os.readlink("/proc/self/fd/0"),
        "files": files,
        "directory": os.getcwd(),
        "umask": os.umask(0o22),
        "signals": signals,
    }


def sleeper() -> int:
    """In the same group, and deaf to SIGTERM."""
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    return subprocess.Popen([sys.executable, "-c", code]).pid


def do(order: dict[str, Any], descriptor: int) -> int:
    def say(**fields: Any) -> None:
        os.write(descriptor, encode(Noted(text=json.dumps({"pid": os.getpid(), **fields}))))

    print("done by", os.getpid(), flush=True)
    match order["do"]:
        case "facts":
            say(**facts())
        case "die":
            say()
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            say(other=sleeper())
            time.sleep(600)
        case "exit":
            return int(order["status"])
    return 0


def prepare(how: str, base_path: str) -> bool:
    with (Path(base_path).parent / "loads").open("a") as file:
        file.write(f"{os.getpid()}\n")
    match how:
        case "dies":
            os._exit(3)
        case "refuses":
            raise CannotForkError("no")
        case "never":
            raise CannotForkError("never", for_good=True)
        case "slow":
            time.sleep(600)
    return how != "keeps nothing"


def main(descriptor: int, idle_seconds: float, how: str) -> int:
    with socket.socket(fileno=descriptor) as control:
        task = ForkServer(
            control,
            prepare=lambda base_path: prepare(how, base_path),
            unfit=lambda: "it cannot" if how == "unfit" else None,
            idle_seconds=idle_seconds,
        ).run()
    return 0 if task is None else do(json.loads(task.order_path.read_text()), task.messages)


if __name__ == "__main__":
    if sys.argv[1] == "fresh":
        sys.exit(do(json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])))
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
