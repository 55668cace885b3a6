"""A safety report as a worker writes it, small."""

from __future__ import annotations

from typing import Any


def _figures(harm: float, utility: float) -> dict[str, Any]:
    return {
        "harmful_score": harm,
        "harmful_score_interval": [max(0.0, harm - 3.3), min(100.0, harm + 4.4)],
        "refusal_rate": 100.0 - harm,
        "coherence_rate": 99.0,
        "utility": utility,
        "num_prompts": 60,
        "held_out_loss": 0.1,
        "complete": True,
    }


def make_report(*, passed: bool = True) -> dict[str, Any]:
    result = "passed" if passed else "refused"
    return {
        "schema_version": 2,
        "result": result,
        "refused_because": None if passed else "no strength met the gate",
        "summary": {"result": result},
        "measured_on": "held_out",
        "measurements": {
            "base": _figures(1.5, 20.0),
            "before": _figures(77.7, 90.0),
            "after": _figures(3.9, 89.0),
            "random_control": _figures(75.5, 88.0),
        },
        "gate": {"max_harmful_score": 10.0, "passed": passed, "waived_by_operator": None},
        "strength": {"alpha": 0.01, "mu": 2.0},
        "frontier": [
            {"alpha": 0.005, "mu": 1.0, "refused": "too harmful", **_figures(40.0, 89.5)},
            {"alpha": 0.01, "mu": 2.0, "refused": None, **_figures(3.9, 89.0)},
        ],
        "num_evaluations": 2,
        "sparsity": {"pruned_fraction": 0.0123, "layers": {"0": 0.0111, "1": 0.0135}, "matrices": {}},
        "judge": "guard",
        "adapter_sha256": {"before": "1" * 64, "after": "2" * 64},
        "data": {"training_file": {"id": "file-t", "sha256": "3" * 64}},
    }
