"""Running a protocol: what is done is taken from the folder, the rest is done, the figures are written."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoclave import __version__
from autoclave.progress import Progress, ProgressCallback
from autoclave.protocol import sets
from autoclave.protocol.config import ProtocolConfig
from autoclave.protocol.figures import figures
from autoclave.protocol.plan import Plan
from autoclave.protocol.report import write_report
from autoclave.protocol.sources import find_sources
from autoclave.protocol.steps import StepStore, locked

Say = Callable[[str], object]


def run_protocol(
    config: ProtocolConfig,
    out: Path,
    *,
    on_progress: ProgressCallback | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Runs every step whose result `out` does not hold, and writes result.json and result.md, which hold the
    figures that are returned.

    A run that was killed goes on where it was (training at its last checkpoint), given the same config; with
    another one, the steps that it touches are done again, and `say` is told why. Raises InputError for
    whatever is wrong with the config's files before anything is made, and what the steps raise.
    """
    from autoclave.modelling.bases import resolve_device

    device = resolve_device(config.device)
    plan = Plan.of(config, find_sources(config), device)
    with locked(out):
        store = StepStore(out)
        now = _versions()
        for number, step in enumerate(plan.steps, start=1):
            title = f"[{number}/{len(plan.steps)}] {step.name}"
            if store.find(step):
                say(f"{title}: done before")
            else:
                changes = store.changes(step)
                why = f", again: changed {'; '.join(changes)}" if changes else ""
                say(f"{title}{why}")
            plan.done[step.name] = store.run(step, versions=now, on_progress=_of_step(step.name, on_progress))
        result = {
            "name": config.name,
            "config": config.model_dump(mode="json"),
            "device": _device_name(device),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            **figures(plan),
            "shared_prompts": sets.shared_prompts(
                plan.rows("set-realignment"), plan.rows("set-harmful-eval")
            ),
            "published": [each.model_dump(mode="json") for each in config.published],
            "steps": {
                name: {"key": done.key, "seconds": done.seconds, "versions": done.versions}
                for name, done in plan.done.items()
            },
            "versions": now,
        }
        _replace(out / "result.json", json.dumps(result, indent=2) + "\n")
        _replace(out / "result.md", write_report(result))
    return result


def status_of(config: ProtocolConfig, out: Path) -> list[dict[str, Any]]:
    """Every step with its state: done, or to do with what changed since its latest result. Checks the
    config's files as `run_protocol` does, and makes nothing."""
    from autoclave.modelling.bases import resolve_device

    plan = Plan.of(config, find_sources(config), resolve_device(config.device))
    store = StepStore(out)
    rows = []
    for step in plan.steps:
        done = store.find(step)
        rows.append(
            {
                "step": step.name,
                "state": "done" if done else "to do",
                "seconds": done.seconds if done else None,
                "changed": [] if done else store.changes(step),
            }
        )
    return rows


def _of_step(name: str, on_progress: ProgressCallback | None) -> ProgressCallback | None:
    """A bar for each stage of each step, named after both."""
    if on_progress is None:
        return None
    report = on_progress

    def named(progress: Progress) -> None:
        report(replace(progress, stage=name if progress.stage in name else f"{name} {progress.stage}"))

    return named


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "transformers", "peft", "tokenizers")}
    return {"autoclave": __version__, "python": platform.python_version(), **libraries}


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return "cpu"


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
