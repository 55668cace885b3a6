"""What a result must say about where it was measured."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def machine(*packages: str) -> dict[str, Any]:
    """With the versions of these packages."""
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def folder_for(argument: str) -> Path:
    """The type of `--out`: made if it is missing, and tried. Better now than after minutes of work."""
    results = Path(argument)
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe = results / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{results}: {error.strerror}") from error
    return results
