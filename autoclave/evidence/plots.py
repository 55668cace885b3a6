"""Plots of a suite: harmful score above, task accuracy below, mean over seeds with its range."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from autoclave.evidence.suites import Suite
from autoclave.evidence.tables import layer_of

mpl.use("Agg")
# Without the salt every run would write other ids into the SVG.
mpl.rcParams |= {
    "svg.hashsalt": "autoclave",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}

Row = dict[str, Any]

# Okabe and Ito's palette: told apart by every kind of colour vision.
COLOURS = (
    *("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#8C6D00", "#666666", "#5E3C99"),
)
MARKERS = "osD^vPX*<>"
_LOGARITHMIC = {"learning_rate"}
_LABELS = {"learning_rate": "learning rate", "poison": "harmful share of the upload"}


def draw(suite: Suite, rows: Sequence[Row], folder: Path) -> list[Path]:
    """PNG and SVG files for the suite; returns the PNGs."""
    if suite.overlap_alphas:
        return [_overlap_plot(suite, rows, folder)]
    return [_panels(suite, x, list(rows), folder) for x in _horizontal(suite)]


def _horizontal(suite: Suite) -> list[str]:
    if suite.fixed and not suite.searched:
        return ["alpha"]
    if suite.name in ("methods", "grid", "undefended"):
        return ["setting"]
    return [column for column in suite.varies if column != "targets"]


def _panels(suite: Suite, x: str, rows: list[Row], folder: Path) -> Path:
    """One column of two panels for each kind of target (and each rule's norm is a series of its own)."""
    rows = _comparable(suite, x, rows)
    facets = list(dict.fromkeys(row["targets"] for row in rows)) if x != "setting" else [None]
    width = 7.5 if x == "setting" else 4.6 * len(facets)
    figure, axes = plt.subplots(
        2, len(facets), figsize=(width, 6), squeeze=False, sharex="col", layout="constrained"
    )
    for column, facet in enumerate(facets):
        chosen = [row for row in rows if facet is None or row["targets"] == facet]
        for panel, key in ((axes[0][column], "harmful_score"), (axes[1][column], "utility")):
            _series(panel, chosen, x, key)
            panel.set_ylim(-4, 104)
            panel.set_ylabel({"harmful_score": "harmful score, %", "utility": "task accuracy, %"}[key])
            panel.grid(alpha=0.25)
        axes[1][column].set_xlabel("" if x == "setting" else _LABELS.get(x, x))
        if facet and len(facets) > 1:
            axes[0][column].set_title(str(facet), fontsize=9)
        if x in _LOGARITHMIC:
            axes[1][column].set_xscale("log")
    handles, labels = axes[0][0].get_legend_handles_labels()
    columns = 2 if width < 6 or len(labels) > 6 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=7, frameon=False)
    return save(figure, folder, f"{suite.name}-{x}")


def _comparable(suite: Suite, x: str, rows: list[Row]) -> list[Row]:
    """Adds `setting`; where a suite varies two columns one at a time, keeps the sweep of `x`."""
    numeric = [column for column in suite.varies if column not in ("targets", "form")]
    if x in numeric and len(numeric) > 1 and suite.name == "training":
        from autoclave.evidence.suites import DEFAULT

        rows = [row for row in rows if all(row[c] == getattr(DEFAULT, c) for c in numeric if c != x)]
    return [
        row | {"setting": "\n".join(_short(column, row[column]) for column in suite.varies)} for row in rows
    ]


def _short(column: str, value: Any) -> str:
    names = {"learning_rate": "lr ", "epochs": "epochs ", "poison": "p "}
    return names.get(column, "") + (f"{value:g}" if isinstance(value, float) else str(value))


def _series(panel: Axes, rows: list[Row], x: str, key: str) -> None:
    """A line per method; what has no `x` of its own (the adapter before, on an alpha axis) is level."""
    names = list(dict.fromkeys(_series_name(row, x) for row in rows))
    places = {
        value: index
        for index, value in enumerate(dict.fromkeys(row[x] for row in rows if row.get(x) is not None))
    }
    categorical = any(isinstance(value, str) for value in places)
    for index, name in enumerate(names):
        own = [row for row in rows if _series_name(row, x) == name and row.get(key) is not None]
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        level = x == "alpha" and all(row.get("alpha") is None for row in own)
        if level and own:
            panel.axhline(statistics.fmean(row[key] for row in own), color=colour, ls=":", lw=1.2, label=name)
            continue
        values: dict[Any, list[float]] = {}
        for row in own:
            values.setdefault(row[x], []).append(row[key])
        ordered = sorted(values, key=places.__getitem__) if categorical else sorted(values)
        shift = 0.08 * (index - (len(names) - 1) / 2) if categorical else 0.0
        at = [places[value] + shift if categorical else value for value in ordered]
        mean = [statistics.fmean(values[value]) for value in ordered]
        panel.plot(at, mean, color=colour, marker=marker, ms=4, lw=0 if categorical else 1.4, label=name)
        panel.vlines(
            at, [min(values[v]) for v in ordered], [max(values[v]) for v in ordered], color=colour, lw=1
        )
    if categorical:
        panel.set_xticks(list(places.values()), list(places), fontsize=7)


def _series_name(row: Row, x: str) -> str:
    if row["state"] != "after":
        return {"base": "base", "before": "not sanitised"}[row["state"]]
    if row.get("searched"):
        return f"{row['method']}, searched"
    norm = "" if row["norm"] == "rms" else f", {row['norm']}"
    alpha = "" if x == "alpha" else f" {row['alpha']:g}"
    return f"{row['method']}{alpha} ({row['rule']}{norm})"


def _overlap_plot(suite: Suite, rows: Sequence[Row], folder: Path) -> Path:
    overlaps = [row for row in rows if row["state"] == "overlap"]
    factors = ("lora_A", "lora_B")
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.4), sharey=True, layout="constrained")
    for panel, factor in zip(axes, factors, strict=True):
        for index, alpha in enumerate(suite.overlap_alphas):
            own = [row for row in overlaps if row["matrix"].endswith(factor) and row["alpha"] == alpha]
            layers = sorted({layer_of(row["matrix"]) for row in own})
            means = [
                statistics.fmean(r["jaccard"] for r in own if layer_of(r["matrix"]) == n) for n in layers
            ]
            chance = statistics.fmean(row["jaccard_by_chance"] for row in own)
            colour = COLOURS[index + 1]
            panel.plot(layers, means, color=colour, marker=MARKERS[index], ms=4, label=f"alpha {alpha:g}")
            panel.axhline(chance, color=colour, ls=":", lw=1)
        panel.set_title(f"{factor} (dotted: by chance)", fontsize=9)
        panel.set_xlabel("layer")
        panel.set_xticks(layers)
        panel.set_ylim(0, 1.02)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("Jaccard index of harmful and task mask")
    axes[0].legend(fontsize=7, frameon=False)
    return save(figure, folder, suite.name)


def save(figure: Any, folder: Path, name: str) -> Path:
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    png = folder / f"{name}.png"
    figure.savefig(png, dpi=130, metadata={"Software": None})
    plt.close(figure)
    return png
