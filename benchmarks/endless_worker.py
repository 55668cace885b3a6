"""A worker whose jobs are an endless loop that heeds neither the flag nor SIGTERM."""

from __future__ import annotations

import sys

from workers.worker import run_worker

_ENDLESS = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"

if __name__ == "__main__":
    sys.exit(run_worker(maintain=True, child_command=lambda *_: [sys.executable, "-c", _ENDLESS]))
