"""python -m chaos: exit status 0 only if nothing was violated and nothing was left undone."""

from __future__ import annotations

import argparse
import datetime
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos import report
from chaos.fleet import SETTINGS, Fleet
from chaos.run import Outcome, Run
from chaos.schedule import Fault, plan
from chaos.world import build_world


def say(text: str) -> None:
    print(text, flush=True)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Jobs under faults, then an audit.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--faults", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1, help="of the plan of faults and of the users")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--open", type=int, default=10, help="most jobs at once that have not ended")
    parser.add_argument("--minutes", type=float, default=60.0, help="then no fault and no job comes any more")
    parser.add_argument("--world", type=Path, help="a built microcosm (default: a tiny one is built)")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="for chaos.json, chaos.md"
    )
    parser.add_argument("--keep", type=Path, help="folder for the logs of all processes, kept")
    return parser.parse_args(given)


def run(options: argparse.Namespace, faults: list[Fault], folder: Path) -> tuple[Outcome, dict[str, object]]:
    began = time.monotonic()
    world = options.world
    if world is None:
        say("building a tiny world")
        world = folder / "world"
        build_world(world)
    run_id = secrets.token_hex(8)
    fleet = Fleet(folder, world.absolute(), run_id=run_id, num_workers=options.workers)
    with fleet.running():
        outcome = Run(
            fleet,
            faults,
            num_jobs=options.jobs,
            most_open=options.open,
            seed=options.seed,
            seconds=60 * options.minutes,
            say=say,
        ).go()
        full_disk = "a small tmpfs (ENOSPC)" if fleet.disks[0].is_mounted else "RLIMIT_FSIZE (EFBIG)"
    about = {
        "command": f"python -m chaos --jobs {options.jobs} --faults {options.faults} --seed {options.seed}"
        f" --workers {options.workers} --open {options.open} --minutes {options.minutes:g}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "seed": options.seed,
        "workers": options.workers,
        "jobs_planned": options.jobs,
        "faults_planned": options.faults,
        "client_retries": outcome.num_retries,
        "out_of_time": outcome.out_of_time,
        "full_disk": full_disk,
    }
    return outcome, about


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    faults = plan(seed=options.seed, num_faults=options.faults, num_jobs=options.jobs)
    try:
        outcome, about = run(options, faults, folder.absolute())
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    result = report.result(
        run=about,
        settings=SETTINGS,
        state=outcome.state,
        violations=outcome.violations,
        plan=faults,
        done=outcome.done,
    )
    report.write(result, options.out)
    say(report.page(result))
    return 1 if any(outcome.violations.values()) or outcome.out_of_time else 0


if __name__ == "__main__":
    sys.exit(main())
