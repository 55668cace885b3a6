"""Python runs this when it starts: `time.time` of the process is shifted by the seconds in a file.

Only where PYTHON_CHAOS_CLOCK names one. The name begins with PYTHON because a worker passes such variables on
to its children, whose clock jumps with that of their machine. `time.monotonic` does not jump, nor does it in
the world.
"""

from __future__ import annotations

import os
import time

_PATH = os.environ.get("PYTHON_CHAOS_CLOCK")
_CACHED_SECONDS = 0.1

if _PATH is not None:
    _FILE = _PATH
    _time, _monotonic = time.time, time.monotonic
    _offset, _read_again_at = 0.0, 0.0

    def _shifted() -> float:
        global _offset, _read_again_at  # noqa: PLW0603 - the process has one clock
        now = _monotonic()
        if now >= _read_again_at:
            try:
                with open(_FILE) as file:
                    _offset = float(file.read() or 0.0)
            except (OSError, ValueError):
                _offset = 0.0
            _read_again_at = now + _CACHED_SECONDS
        return _time() + _offset

    time.time = _shifted
