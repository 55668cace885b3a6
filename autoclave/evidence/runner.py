"""Runs suites: builds worlds, trains, measures, in processes; everything done is kept and not done again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.evidence.recipes import RECIPES, Defence
from autoclave.evidence.runs import Run
from autoclave.evidence.suites import Suite
from autoclave.microcosm.sizes import SizeName
from autoclave.progress import Progress, ProgressCallback

# The seeds that docs/evidence reports; those below were used to choose defaults.
FIRST_SEED = 101
# To be raised when costs are measured otherwise.
COSTS_VERSION = 1


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

    def base(self, defence: Defence, seed: int) -> Path:
        """The world's own aligned base, or the one that an alignment-stage defence makes."""
        recipe = RECIPES[defence]
        if not recipe.phases:
            return self.world(seed) / "aligned"
        return self.folder / "bases" / f"{defence}-{recipe.digest}-{seed}"

    def rows(self, suite: Suite, run: Run) -> Path:
        return self._rows_of(suite) / f"{run.digest}.json"

    def costs(self, suite: Suite, seed: int) -> Path:
        return self._rows_of(suite) / f"costs-{COSTS_VERSION}-{seed}.json"

    def _rows_of(self, suite: Suite) -> Path:
        return self.folder / "rows" / f"{suite.name}-{suite.digest}"


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
    """All rows of all suites, in the order of suites, runs and seeds, and what each costs behind them.

    `work` keeps worlds, adapters and rows: a run that was stopped goes on where it was. Each process
    computes on one thread, so that results do not depend on `jobs`.
    """
    folder = WorkFolder(work, size, sst2_dir)
    todo: dict[Run, list[Suite]] = {}
    for suite, run in _wanted(suites, seeds):
        if not folder.rows(suite, run).exists():
            todo.setdefault(run, []).append(suite)
    bases = dict.fromkeys((run.defence, run.seed) for run in todo if RECIPES[run.defence].phases)
    stages: list[tuple[Callable[..., None], list[tuple[Any, ...]]]] = [
        (_build_world, [(folder, seed) for seed in seeds if not folder.world(seed).exists()]),
        (_make_base, [(folder, *base) for base in bases if not folder.base(*base).exists()]),
        (
            _measure_costs,
            [(folder, *each) for each in _costs(suites, seeds) if not folder.costs(*each).exists()],
        ),
        (_measure, [(folder, run, todo[run]) for run in todo]),
    ]
    total, done = sum(len(tasks) for _, tasks in stages), 0

    def report() -> None:
        if on_progress:
            on_progress(Progress("evidence", done, total))

    report()
    # Spawned, not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        try:
            for function, tasks in stages:
                for future in as_completed([pool.submit(function, *task) for task in tasks]):
                    future.result()
                    done += 1
                    report()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return finished_rows(suites, work, seeds=seeds, size=size, sst2_dir=sst2_dir)


def finished_rows(
    suites: Sequence[Suite],
    work: Path,
    *,
    seeds: Sequence[int],
    size: SizeName = "small",
    sst2_dir: Path | None = None,
) -> list[dict[str, Any]]:
    """As `run_suites`, of what `work` already holds: nothing is run."""
    folder = WorkFolder(work, size, sst2_dir)
    files = [folder.rows(suite, run) for suite, run in _wanted(suites, seeds)]
    files += [folder.costs(suite, seed) for suite, seed in _costs(suites, seeds)]
    return [row for file in files if file.exists() for row in json.loads(file.read_text(encoding="utf-8"))]


def _wanted(suites: Sequence[Suite], seeds: Sequence[int]) -> list[tuple[Suite, Run]]:
    return [(suite, run.with_seed(seed)) for suite in suites for run in suite.runs for seed in seeds]


def _costs(suites: Sequence[Suite], seeds: Sequence[int]) -> list[tuple[Suite, int]]:
    return [(suite, seed) for suite in suites if suite.costs for seed in seeds]


def _one_thread() -> None:
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()


def _build_world(folder: WorkFolder, seed: int) -> None:
    from autoclave.microcosm.build import build

    build(folder.world(seed), seed=seed, size=folder.size, sst2_dir=folder.sst2_dir)


def _make_base(folder: WorkFolder, defence: Defence, seed: int) -> None:
    from autoclave.evidence.aligned import make_base

    make_base(RECIPES[defence], folder.world(seed), folder.base(defence, seed), seed=seed)


def _measure_costs(folder: WorkFolder, suite: Suite, seed: int) -> None:
    """Of every defence in one process, in turn."""
    from autoclave.evidence.costs import measure_costs

    rows = measure_costs(folder.world(seed), seed=seed)
    _write(folder.costs(suite, seed), [{"suite": suite.name, **row} for row in rows])


def _measure(folder: WorkFolder, run: Run, suites: Sequence[Suite]) -> None:
    """One process trains an adapter once and measures it for every suite that wants it."""
    from autoclave.evidence.bench import Bench
    from autoclave.evidence.measures import measure_run

    bench = Bench.open(
        run,
        folder.world(run.seed),
        folder.folder / "runs",
        base_dir=folder.base(run.defence, run.seed),
        sst2_dir=folder.sst2_dir,
    )
    for suite in suites:
        _write(folder.rows(suite, run), measure_run(suite, bench))


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(rows), encoding="utf-8")
    partial.replace(file)
