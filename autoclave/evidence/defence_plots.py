"""Plot of the defences: a panel of harm and one of task accuracy, alone and behind the default sanitiser."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from autoclave.evidence.defence_tables import attacks_of, select
from autoclave.evidence.plots import COLOURS, MARKERS, save
from autoclave.evidence.recipes import DEFENCES
from autoclave.evidence.suites import Suite, sanitizer_label


def draw_defences(suite: Suite, rows: Sequence[dict[str, Any]], folder: Path) -> Path:
    """PNG and SVG; returns the PNG. Points are means over worlds, lines their range."""
    attacks = attacks_of(rows)
    sanitizer = sanitizer_label(suite.searched[0])
    columns = ((None, "alone"), (sanitizer, f"with {sanitizer}"))
    figure, axes = plt.subplots(2, 2, figsize=(11, 6.5), sharex=True, sharey=True, layout="constrained")
    for column, (method, title) in enumerate(columns):
        axes[0][column].set_title(title, fontsize=9)
        for panel, key in ((axes[0][column], "harmful_score"), (axes[1][column], "utility")):
            for index, defence in enumerate(DEFENCES):
                shift = 0.1 * (index - (len(DEFENCES) - 1) / 2)
                points = []
                for place, attack in enumerate(attacks):
                    own = select(rows, attack, defence, method)
                    values = [row[key] for row in own if row.get(key) is not None]
                    if values:
                        points.append((place + shift, min(values), statistics.fmean(values), max(values)))
                at, low, mean, high = zip(*points, strict=True) if points else ((), (), (), ())
                panel.plot(at, mean, COLOURS[index], marker=MARKERS[index], ms=4, lw=0, label=defence)
                panel.vlines(at, low, high, color=COLOURS[index], lw=1)
            panel.set_ylim(-4, 104)
            panel.grid(alpha=0.25)
        axes[1][column].set_xticks(
            range(len(attacks)), [attack.replace(", ", "\n") for attack in attacks], fontsize=7
        )
    axes[0][0].set_ylabel("harmful score, %")
    axes[1][0].set_ylabel("task accuracy, %")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(DEFENCES), fontsize=8, frameon=False)
    return save(figure, folder, suite.name)
