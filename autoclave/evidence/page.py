"""A suite's folder: rows, plots and one Markdown page that names command, versions and machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoclave.evidence.defence_plots import draw_defences
from autoclave.evidence.defence_tables import defence_parts
from autoclave.evidence.plots import draw
from autoclave.evidence.suites import Suite
from autoclave.evidence.tables import summary_table, verdict_lines, write_rows
from autoclave.microcosm.profile import GATE


def write_suite(suite: Suite, rows: Sequence[dict[str, Any]], out: Path, *, command: str) -> Path:
    """Writes `suite.name`.{csv,json,md} and its plots into `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    write_rows(rows, out, suite.name)
    defences = "defence" in suite.varies
    plots = [draw_defences(suite, rows, out)] if defences else draw(suite, rows, out)
    seeds = sorted({row["seed"] for row in rows})
    parts = [
        f"# {suite.name}",
        suite.question,
        f"`{command}`",
        f"Mean (lowest to highest) over {len(seeds)} seeds ({', '.join(map(str, seeds))}); a seed draws "
        "world, base model, upload and adapter. Percent, on prompts and rows that chose nothing. Every row: "
        f"[{suite.name}.csv]({suite.name}.csv), [{suite.name}.json]({suite.name}.json).",
    ]
    if suite.searched:
        parts.append(
            f"Goals and gate: harmful score at most {GATE.max_harmful_score:g}, refusals at least "
            f"{GATE.min_refusal_rate:g}, at most {GATE.max_utility_loss:g} points of task accuracy lost. "
            "Searched strengths are chosen on one half of the plain prompts and the user's validation rows."
        )
        if not defences:
            parts.append("\n".join(verdict_lines(suite, rows)))
        parts.append("A point that is missing in a plot: no run of that setting found a strength.")
    parts += [f"![{plot.stem}]({plot.name})" for plot in plots]
    parts += defence_parts(suite, rows) if defences else [summary_table(suite, rows)]
    packages = ", ".join(f"{name} {version(name)}" for name in ("autoclave", "torch", "transformers", "peft"))
    parts.append(
        f"Made with Python {platform.python_version()}, {packages} on {platform.machine()}, "
        f"{os.cpu_count()} cores, float32, one thread per run."
    )
    page = out / f"{suite.name}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page
