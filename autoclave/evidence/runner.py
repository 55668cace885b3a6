"""Runs suites: builds worlds, trains, measures, in processes; everything done is kept and not done again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.evidence.runs import Run
from autoclave.evidence.suites import Suite
from autoclave.microcosm.sizes import SizeName
from autoclave.progress import Progress, ProgressCallback

# The seeds that docs/evidence reports; those below were used to choose defaults.
FIRST_SEED = 101


@dataclass(frozen=True)
class WorkFolder:
    """Where worlds of one kind are kept with what was trained and measured on them."""

    root: Path
    size: SizeName
    sst2_dir: Path | None

    @property
    def folder(self) -> Path:
        return self.root / f"{self.size}{'-sst2' if self.sst2_dir else ''}"

    def world(self, seed: int) -> Path:
        return self.folder / "worlds" / str(seed)

    def rows(self, suite: Suite, run: Run) -> Path:
        return self.folder / "rows" / f"{suite.name}-{suite.digest}" / f"{run.digest}.json"


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
    folder = WorkFolder(work, size, sst2_dir)
    wanted = [(suite, run.with_seed(seed)) for suite in suites for run in suite.runs for seed in seeds]
    todo: dict[Run, list[Suite]] = {}
    for suite, run in wanted:
        if not folder.rows(suite, run).exists():
            todo.setdefault(run, []).append(suite)
    new_worlds = [seed for seed in seeds if not folder.world(seed).exists()]
    total, done = len(todo) + len(new_worlds), 0

    def report() -> None:
        if on_progress:
            on_progress(Progress("evidence", done, total))

    report()
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        try:
            for function, tasks in (
                (_build_world, [(folder, seed) for seed in new_worlds]),
                (_measure, [(folder, run, todo[run]) for run in todo]),
            ):
                for future in as_completed([pool.submit(function, *task) for task in tasks]):
                    future.result()
                    done += 1
                    report()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [
        row
        for suite, run in wanted
        for row in json.loads(folder.rows(suite, run).read_text(encoding="utf-8"))
    ]


def _one_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


def _build_world(folder: WorkFolder, seed: int) -> None:
    from autoclave.microcosm.build import build

    build(folder.world(seed), seed=seed, size=folder.size, sst2_dir=folder.sst2_dir)


def _measure(folder: WorkFolder, run: Run, suites: Sequence[Suite]) -> None:
    """One process trains an adapter once and measures it for every suite that wants it."""
    from autoclave.evidence.bench import Bench
    from autoclave.evidence.measures import measure_run

    bench = Bench.open(run, folder.world(run.seed), folder.folder / "runs", sst2_dir=folder.sst2_dir)
    for suite in suites:
        rows = measure_run(suite, bench)
        file = folder.rows(suite, run)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(rows), encoding="utf-8")
        partial.replace(file)
