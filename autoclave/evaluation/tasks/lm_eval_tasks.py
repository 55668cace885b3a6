"""The package lm-eval (EleutherAI's harness): found or refused, and its results in plain words. Torch-free.

By the interface that its docs/python-api.md describes (0.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from autoclave.errors import InputError


def import_lm_eval() -> tuple[Any, Any]:
    """(package, its wrapper of transformers models). Raises InputError if it is not installed."""
    try:
        return import_module("lm_eval"), import_module("lm_eval.models.huggingface").HFLM
    except ModuleNotFoundError as error:
        raise InputError(
            f"tasks of lm-eval need a package that is not installed ({error.name}). Install it with: "
            "pip install 'autoclave[lm-eval]'"
        ) from error


def task_options(include_path: str | Path | None) -> dict[str, Any]:
    """What `simple_evaluate` needs to find the task files of a folder besides the package's own. Raises
    InputError if there is no such folder."""
    if include_path is None:
        return {}
    folder = Path(include_path)
    if not any(folder.glob("**/*.yaml")):
        raise InputError(f"{folder} holds no task of lm-eval (a YAML file).")
    return {"task_manager": import_module("lm_eval.tasks").TaskManager(include_path=str(folder))}


def read_results(found: Mapping[str, Any]) -> dict[str, Any]:
    """By task: `metrics` by name (and filter, where it is not "none") with value and standard error, on the
    scale of the task (most are fractions), `version`, `num_fewshot` and `num_samples`. Raises InputError for
    an object without results."""
    results = found.get("results")
    if not isinstance(results, Mapping) or not results:
        raise InputError("lm-eval gave no results; is its version at least 0.4?")
    return {
        task: {
            "metrics": _metrics(values),
            "version": found.get("versions", {}).get(task),
            "num_fewshot": found.get("n-shot", {}).get(task),
            "num_samples": found.get("n-samples", {}).get(task, {}).get("effective"),
        }
        for task, values in results.items()
    }


def _metrics(values: Mapping[str, Any]) -> dict[str, Any]:
    """Keys are "acc,none" and "acc_stderr,none": a metric and the filter that read the answers."""
    metrics: dict[str, Any] = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if name == "sample_len":  # a count; `num_samples` says it
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or name.endswith("_stderr"):
            continue
        stderr = values.get(f"{name}_stderr,{filtered}")
        shown = name if filtered in ("", "none") else f"{name} ({filtered})"
        is_number = isinstance(stderr, int | float) and not isinstance(stderr, bool)
        metrics[shown] = {"value": value, "stderr": stderr if is_number else None}
    return metrics
