"""What a run says of itself: progress while it lasts, a JSON and a page afterwards."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chaos.end_state import EndState
from chaos.faults import Done
from chaos.schedule import KINDS, Fault

PACKAGES = ("celery", "fastapi", "moto", "obstore", "psycopg", "redis", "sqlalchemy", "torch", "uvicorn")
_RULES = {
    "every_job_has_ended": "every job is terminal",
    "no_job_is_lost_or_doubled": "no job lost, none made twice",
    "none_is_published_twice": "none published twice",
    "only_sanitised_adapters_are_public": "no unsanitised file is public",
    "no_route_gives_what_was_not_released": "no route gives what was not released",
    "no_process_is_left": "no process is left",
    "events_are_paths_of_the_table": "every event log is a path of the table",
    "rows_follow_the_table": "every change of a row is an edge of the table",
    "a_lost_lease_writes_nothing": "who lost the lease wrote nothing",
    "an_accepted_cancel_holds": "an accepted cancel holds",
    "faults_saw_nothing_wrong": "no fault saw what must not be",
}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def hardware() -> dict[str, Any]:
    return {
        "processor": processor(),
        "processors": os.cpu_count(),
        "load_average_at_end": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def counts(plan: Sequence[Fault], done: Sequence[Done]) -> dict[str, dict[str, int]]:
    """By kind: planned, and really injected."""
    table = {kind: {"planned": 0, "injected": 0} for kind in KINDS}
    for fault in plan:
        table[fault.kind]["planned"] += 1
    for each in done:
        table[each.fault.kind]["injected"] += each.hit
    return table


def by_stage(done: Sequence[Done]) -> dict[str, dict[str, int]]:
    """How many were injected of those that wait for a stage."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for each in done:
        if each.hit and each.fault.stage:
            table[each.fault.kind][each.fault.stage] += 1
    return {kind: dict(stages) for kind, stages in table.items()}


def figures(done: Sequence[Done]) -> dict[str, dict[str, float]]:
    """Median and largest of what faults measured."""
    seen: dict[str, list[float]] = defaultdict(list)
    for each in done:
        for name, value in each.figures.items():
            seen[f"{each.fault.kind}: {name.replace('_', ' ')}"].append(value)
    return {
        name: {"times": len(values), "median": round(statistics.median(values), 2), "largest": max(values)}
        for name, values in sorted(seen.items())
    }


def result(
    *,
    run: Mapping[str, Any],
    settings: Mapping[str, str],
    state: EndState,
    violations: Mapping[str, Sequence[str]],
    plan: Sequence[Fault],
    done: Sequence[Done],
) -> dict[str, Any]:
    errors = Counter(job.error_code for job in state.jobs if job.error_code)
    exits = Counter(attempt.exit_reason or "unknown" for attempt in state.attempts)
    return {
        **run,
        "jobs": {
            "acknowledged": len(state.acknowledged),
            "ended": dict(Counter(job.status for job in state.jobs)),
            "error_codes": dict(errors),
            "attempts": len(state.attempts),
            "attempts_ended": dict(exits),
            "writes_in_the_journal": len(state.journal),
            "tries_to_get_at_weights": len(state.answers),
            "objects_stored": len(state.objects),
        },
        "audit": {name: list(found) for name, found in violations.items()},
        "faults": counts(plan, done),
        "faults_by_stage": by_stage(done),
        "seconds": figures(done),
        "settings": dict(settings),
        "machine": hardware(),
        "log": [_line(each) for each in done],
    }


def _line(done: Done) -> dict[str, Any]:
    return {
        "number": done.fault.number,
        "fault": done.fault.label,
        "injected": done.hit,
        "what": done.what,
        "took_seconds": done.seconds,
        **done.figures,
    }


def page(result: Mapping[str, Any]) -> str:
    """Markdown."""
    jobs, machine = result["jobs"], result["machine"]
    num_wrong = sum(map(len, result["audit"].values()))
    injected = sum(row["injected"] for row in result["faults"].values())
    ended = ", ".join(f"{count} {status}" for status, count in sorted(jobs["ended"].items()))
    lines = [
        "# Fault suite",
        "",
        f"`{result['command']}`, {result['date']}, {result['minutes']} minutes.",
        "",
        f"- {sum(jobs['ended'].values())} jobs ({ended}) in {jobs['attempts']} attempts, {injected} faults, "
        f"seed {result['seed']}, {result['workers']} workers.",
        f"- **{num_wrong} violations.**",
        f"- {machine['processors']} x {machine['processor']}, load "
        f"{machine['load_average_at_end'][0]} at the end; Python {machine['python']}, "
        + ", ".join(f"{name} {machine[name]}" for name in PACKAGES)
        + ".",
        f"- A full disk was {result['full_disk']}.",
        "",
        "| after it | violations |",
        "|---|---|",
        *(f"| {_RULES[name]} | {len(found)} |" for name, found in result["audit"].items()),
        "",
        *[f"- {name}: {text}" for name, found in result["audit"].items() for text in found[:20]],
        "",
        "| fault | planned | injected | in stages |",
        "|---|---|---|---|",
    ]
    for kind, row in result["faults"].items():
        stages = result["faults_by_stage"].get(kind, {})
        where = ", ".join(f"{stage} {count}" for stage, count in stages.items())
        lines.append(f"| {kind} | {row['planned']} | {row['injected']} | {where} |")
    lines += ["", "| measured by the faults, seconds | times | median | largest |", "|---|---|---|---|"]
    for name, row in result["seconds"].items():
        lines.append(f"| {name} | {row['times']} | {row['median']:g} | {row['largest']:g} |")
    lines += [
        "",
        "Attempts ended: " + ", ".join(f"{k} {v}" for k, v in sorted(jobs["attempts_ended"].items())) + ".",
        "Jobs failed with: "
        + (", ".join(f"{k} {v}" for k, v in sorted(jobs["error_codes"].items())) or "nothing")
        + ".",
        "",
    ]
    return "\n".join(lines)


def write(result: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chaos.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "chaos.md").write_text(page(result))
