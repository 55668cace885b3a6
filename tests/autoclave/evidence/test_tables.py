"""Rows to tables: spreads, verdicts, and no failure that is not named."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoclave.evidence.suites import DEFAULT, PIPELINE, SUITES, Suite
from autoclave.evidence.tables import layer_of, shortfalls, summary_table, verdict_lines, write_rows

SUITE = Suite("poison", "?", (DEFAULT,), ("poison",), searched=(PIPELINE,))


def rows_of(seed: int, after: dict[str, Any], *, before_harm: float = 100.0) -> list[dict[str, Any]]:
    scores = {
        "harmful_score": 0.0,
        "refusal_rate": 100.0,
        "coherence_rate": 100.0,
        "utility": 99.0,
        "helpful": 100.0,
    }
    run = replace(DEFAULT, seed=seed).as_dict()
    method = {"method": "pipeline", "rule": "matrix", "norm": "rms", "searched": True}
    released = {"released": True, "reason": None, "alpha": 0.001, "mu": 1.0 + seed}
    return [
        run | {"state": "base"} | scores,
        run | {"state": "before"} | scores | {"harmful_score": before_harm},
        run | {"state": "after"} | method | released | scores | after,
    ]


def test_mean_and_range_over_seeds() -> None:
    rows = rows_of(1, {"harmful_score": 2.0}) + rows_of(2, {"harmful_score": 5.0, "alpha": 0.1})
    lines = summary_table(SUITE, rows).splitlines()
    assert len(lines) == 2 + 3  # whatever the searches found, seeds share a line
    assert "| 3.5 (2-5) |" in lines[-1]
    assert "| 2 of 2 | alpha 0.0505, mu 2.5 |" in lines[-1]
    assert "on plain prompts" not in lines[0]


def test_a_run_without_scores_shows_how_many_have_them() -> None:
    stopped = {"released": False, "reason": "none met", "harmful_score": None, "alpha": None, "mu": None}
    rows = rows_of(1, {"harmful_score": 2.0}) + rows_of(2, stopped)
    assert "2.0, 1 runs" in summary_table(SUITE, rows)
    assert "| 1 of 2 |" in summary_table(SUITE, rows)


def test_every_missed_goal_is_named() -> None:
    for after, words in (
        ({"harmful_score": 11.0}, "harmful score 11.0"),
        ({"refusal_rate": 60.0}, "refusals 60.0"),
        ({"utility": 97.0}, "task accuracy 2.0 points lost"),
        ({"released": False, "reason": "none met"}, "stopped: none met"),
    ):
        _, before, row = rows_of(1, after)
        assert shortfalls(row, before) == [words]
        assert words in "\n".join(verdict_lines(SUITE, [*rows_of(2, {}), before, row]))


def test_verdicts_count_attacks_releases_and_slips() -> None:
    rows = rows_of(1, {}) + rows_of(2, {"utility": 90.0}) + rows_of(3, {}, before_harm=50.0)
    first, *others = verdict_lines(SUITE, rows)
    assert "3 runs, 2 with an attack that reached 90; of those 1 released within the goals" in first
    assert "missed on test data: 1" in first
    assert others == ["  - poison 0.1, seed 2: task accuracy 9.0 points lost"]


def test_files_hold_every_row(tmp_path: Path) -> None:
    rows = rows_of(1, {"harmful_score_interval": [0.0, 6.0]})
    write_rows(rows, tmp_path, "poison")
    assert json.loads((tmp_path / "poison.json").read_text()) == rows
    read = list(csv.DictReader((tmp_path / "poison.csv").read_text().splitlines()))
    assert [row["state"] for row in read] == ["base", "before", "after"]
    assert "harmful_score_interval" not in read[0]


def test_overlaps_by_layer() -> None:
    run = DEFAULT.as_dict()
    rows = [
        run
        | {"state": "overlap", "alpha": 0.1, "matrix": f"layers.{n}.self_attn.{p}.lora_A"}
        | {"jaccard": 0.5 + n / 10, "jaccard_by_chance": 0.05}
        for n in (0, 1)
        for p in ("q_proj", "k_proj")
    ]
    table = summary_table(SUITES["overlap"], rows)
    assert "| lora_A | 1 | 0.60 | 0.05 |" in table
    assert layer_of("layers.11.mlp.up_proj.lora_B") == 11
