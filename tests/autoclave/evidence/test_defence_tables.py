"""The page of the defences: what held and what broke, what was stopped, and what was not run."""

from dataclasses import replace
from typing import Any

from autoclave.evidence.defence_tables import attack_label, attacks_of, defence_parts, select
from autoclave.evidence.runs import Run
from autoclave.evidence.suites import DEFAULT, PIPELINE, PROJECTION, SUITES, FixedMask, Suite, sanitizer_label

HIGH = replace(DEFAULT, learning_rate=3e-3)
RUNS = tuple(replace(attack, defence=defence) for attack in (DEFAULT, HIGH) for defence in ("sft", "vaccine"))
SUITE = Suite(
    "defences",
    "?",
    RUNS,
    ("defence",),
    searched=(PIPELINE, PROJECTION),
    fixed=(FixedMask("antidote", 0.1),),
    costs=True,
)


def rows_of(run: Run, harm: float, after: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    scores = {"harmful_score": harm, "refusal_rate": 90.0, "utility": 99.0, "helpful": 100.0}
    rows = [
        {"state": "base"} | scores | {"harmful_score": 1.0},
        {"state": "before", "cpu_seconds": 10.0} | scores,
    ]
    if after is not None:
        searched = {"state": "after", "method": "pipeline", "searched": True, "cpu_seconds": 25.0}
        rows.append(searched | {"released": True, "evaluations": 4} | scores | after)
    return [run.as_dict() | row for row in rows]


def page(rows: list[dict[str, Any]]) -> str:
    return "\n".join(defence_parts(SUITE, rows))


def both(run: Run, *harms: float) -> list[dict[str, Any]]:
    return [
        row
        for seed, harm in enumerate(harms, start=1)
        for row in rows_of(run.with_seed(seed), harm, {"harmful_score": 2.0 * seed})
    ]


def test_what_holds_in_every_world_and_what_breaks_in_one() -> None:
    text = page(both(RUNS[0], 100, 100) + both(RUNS[1], 4, 8) + both(RUNS[3], 4, 60))
    base, high = attack_label(DEFAULT.as_dict()), attack_label(HIGH.as_dict())
    assert (base, high) == ("p 0.1, lr 0.001, 5 epochs", "p 0.1, lr 0.003, 5 epochs")
    assert f"**vaccine** keeps the harmful score at 10 or less in every world under: {base}. " in text
    assert f"It breaks under: {high} (held in 1 of 2 worlds)." in text
    assert f"every world under: nothing here. It breaks under: {base}." in text
    assert f"| {base} | 100 / 99 | 6 (4-8) / 99 |" in text


def test_rows_of_every_sanitiser_are_found_by_its_name() -> None:
    """Also where the name says more than the method: which way of protection."""
    suite = SUITES["defences-sanitisers"]
    run = replace(suite.runs[0], seed=1)
    rows = rows_of(run, 100)[:2]
    for spec in suite.searched:
        rows += rows_of(run, 100, {"method": sanitizer_label(spec), "harmful_score": 3.0})[2:]
    text = "\n".join(defence_parts(suite, rows))
    assert text.count("released within the goals in 1 of 1 runs") == len(suite.searched) == 3


def test_runs_that_are_missing_are_named_and_cells_say_so() -> None:
    text = page(both(RUNS[0], 100, 100) + both(RUNS[1], 4))
    assert "| 4 / 99, 1 of 2 worlds run | not run |" in text
    assert "5 of 8 runs (defence and world)" in text
    assert "- p 0.1, lr 0.001, 5 epochs: vaccine 2" in text
    assert "- p 0.1, lr 0.003, 5 epochs: sft 1, sft 2, vaccine 1, vaccine 2" in text
    whole = [row for run in RUNS for row in both(run, 1, 2)]
    assert "## Not run" not in page(whole)


def test_what_the_gate_stopped_or_let_slip_is_listed() -> None:
    nothing = {"released": False, "reason": "none met", "harmful_score": None, "utility": None}
    blocked = {"released": False, "reason": "too harmful"}
    rows = [
        *rows_of(RUNS[0].with_seed(1), 100, {"harmful_score": 0.0}),
        *rows_of(RUNS[0].with_seed(2), 100, nothing),
        *rows_of(RUNS[0].with_seed(3), 100, blocked),
    ]
    text = page(rows)
    assert "| 50 (0-100) / 99, stopped 1 of 3, not released 1 of 3 |" in text
    assert "- **sft**: released within the goals in 1 of 3 runs, stopped in 2." in text
    assert "  - p 0.1, lr 0.001, 5 epochs, seed 2: stopped: none met" in text


def test_costs_of_training_and_of_sanitising() -> None:
    cost = {"state": "cost", "seed": 1, "stage": "align", "memory_ratio": 1.5, "peak_mib": 40.0}
    costs = [
        cost | {"defence": "vaccine", "time_ratio": ratio, "seed": i} for i, ratio in ((1, 2.0), (2, 2.2))
    ]
    text = page(both(RUNS[0], 100, 100) + costs)
    assert "| vaccine | align | 2.10 (2-2.2) | 1.50 | 40.0 |" in text
    assert "| pipeline | 2.50 | 4 |" in text
    assert "What training costs" not in page(both(RUNS[0], 100, 100))


def test_rows_are_told_apart_by_attack_defence_and_sanitiser() -> None:
    rows = both(RUNS[0], 100) + both(RUNS[1], 4) + both(RUNS[2], 50)
    assert attacks_of(rows) == ["p 0.1, lr 0.001, 5 epochs", "p 0.1, lr 0.003, 5 epochs"]
    (alone,) = select(rows, attacks_of(rows)[0], "vaccine", None)
    (after,) = select(rows, attacks_of(rows)[0], "vaccine", "pipeline")
    assert (alone["harmful_score"], after["harmful_score"]) == (4, 2.0)
    assert select(rows, attacks_of(rows)[0], "vaccine", "projection") == []


def test_all_sanitisers_stand_side_by_side() -> None:
    fixed = {"state": "after", "method": "antidote", "alpha": 0.1, "harmful_score": 70.0, "utility": 30.0}
    text = page([*both(RUNS[0], 100), RUNS[0].with_seed(1).as_dict() | fixed])
    assert "| defence | none | pipeline, searched | antidote 0.1 |" in text
    assert "| sft | 100 / 99 | 2 / 99 | 70 / 30 |" in text


def test_every_attack_meets_every_defence_and_the_default_meets_every_sanitiser() -> None:
    attacks = {replace(run, defence="sft") for run in SUITES["defences"].runs}
    assert len(SUITES["defences"].runs) == 6 * len(attacks)
    assert {DEFAULT} == {replace(run, defence="sft") for run in SUITES["defences-sanitisers"].runs}
    methods = [
        spec.method for name in SUITES if name.startswith("defences") for spec in SUITES[name].searched
    ]
    assert sorted(methods) == ["antidote", "antidote-protected", "pipeline", "projection"]
