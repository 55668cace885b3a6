"""The real worker process, over scripted children: `python -m tests.workers.scripted_worker BEHAVIOUR`."""

from __future__ import annotations

import sys

from tests.workers import children
from workers.worker import run_worker

if __name__ == "__main__":
    sys.exit(
        run_worker(
            maintain="--without-maintenance" not in sys.argv, child_command=children.command(sys.argv[1])
        )
    )
