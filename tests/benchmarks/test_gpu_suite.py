"""The GPU benchmark runs whole on a CPU, small: a lease of minutes is no place to find a typing error."""

import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_part_gives_its_figure_beside_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu_suite = importlib.import_module("gpu_suite")
    assert gpu_suite.main(["--tiny", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert result["device"] == "CPU"
    parts = result["parts"]
    assert set(parts) == set(gpu_suite.PARTS) == set(gpu_suite.GOALS)
    for name, part in parts.items():
        for figure in set(part["goal"]) - {"mfu", "stretch_tokens_per_second"}:
            assert part[figure] > 0, name
    assert parts["training"]["tokens_per_step"] == 128
    assert parts["training"]["mfu"] is None, "nobody knows the peak of this device"
    assert 0 < parts["antidote"]["pruned_share"] < 0.2
    assert parts["fused"]["tokens_per_step_and_job"] == 32


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    gpu_suite = importlib.import_module("gpu_suite")

    def fails(_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setitem(gpu_suite.PARTS, "antidote", fails)
    arguments = ["--tiny", "--parts", "antidote", "generation", "--out", str(tmp_path)]
    assert gpu_suite.main(arguments) == 1
    parts = json.loads((tmp_path / "gpu_suite.json").read_text())["parts"]
    assert "out of memory" in parts["antidote"]["error"]
    assert parts["generation"]["tokens_per_second"] > 0
    assert parts["generation"]["continuous"]["answers_unlike_static"] == 0
