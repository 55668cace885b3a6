"""Runs suites: builds worlds, trains, measures, in processes; everything done is kept and not done again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from autoclave.evidence.runs import Run
from autoclave.evidence.suites import Suite
from autoclave.microcosm.sizes import SizeName
from autoclave.progress import Progress, ProgressCallback

# The seeds that docs/evidence reports; those below were used to choose defaults.
FIRST_SEED = 101


def world_folder(worlds: Path, size: str, seed: int, *, sst2: bool) -> Path:
    return worlds / f"{size}{'-sst2' if sst2 else ''}-{seed}"


def run_suites(
    suites: Sequence[Suite],
    work: Path,
    *,
    seeds: Sequence[int],
    size: SizeName = "small",
    sst2_dir: Path | None = None,
    jobs: int = 1,
    on_progress: ProgressCallback | None = None,
) -> list[dict[str, Any]]:
    """All rows of all suites, in the order of suites, runs and seeds.

    `work` keeps worlds, adapters and rows: a run that was stopped goes on where it was. Each process
    computes on one thread, so that results do not depend on `jobs`.
    """
    wanted = [(suite, run.with_seed(seed)) for suite in suites for run in suite.runs for seed in seeds]
    todo: dict[Run, list[Suite]] = {}
    for suite, run in wanted:
        if not _rows_file(work, suite, run).exists():
            todo.setdefault(run, []).append(suite)
    new_worlds = [
        s for s in seeds if not world_folder(work / "worlds", size, s, sst2=bool(sst2_dir)).exists()
    ]
    total, done = len(todo) + len(new_worlds), 0

    def report() -> None:
        if on_progress:
            on_progress(Progress("evidence", done, total))

    report()
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        try:
            for phase in (
                [pool.submit(_build_world, work, size, seed, sst2_dir) for seed in new_worlds],
                [pool.submit(_measure, work, size, bool(sst2_dir), run, todo[run]) for run in todo],
            ):
                for future in as_completed(phase):
                    future.result()
                    done += 1
                    report()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [
        row
        for suite, run in wanted
        for row in json.loads(_rows_file(work, suite, run).read_text(encoding="utf-8"))
    ]


def _rows_file(work: Path, suite: Suite, run: Run) -> Path:
    return work / "rows" / suite.name / f"{run.digest}.json"


def _one_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


def _build_world(work: Path, size: SizeName, seed: int, sst2_dir: Path | None) -> None:
    from autoclave.microcosm.build import build

    folder = world_folder(work / "worlds", size, seed, sst2=bool(sst2_dir))
    build(folder, seed=seed, size=size, sst2_dir=sst2_dir)


def _measure(work: Path, size: str, sst2: bool, run: Run, suites: Sequence[Suite]) -> None:
    """One process trains an adapter once and measures it for every suite that wants it."""
    from autoclave.evidence.bench import Bench
    from autoclave.evidence.measures import measure_run

    bench = Bench.open(run, world_folder(work / "worlds", size, run.seed, sst2=sst2), work / "runs")
    for suite in suites:
        rows = measure_run(suite, bench)
        file = _rows_file(work, suite, run)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        partial.replace(file)
