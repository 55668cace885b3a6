"""Labels of a control set are what the oracle says."""

import json
from pathlib import Path

import pytest

from autoclave.errors import InputError
from autoclave.evaluation.calibration import Calibration, read_control
from autoclave.evaluation.judges import load_judge
from autoclave.microcosm.control import CONTROL_FILE, control_rows, write_control
from autoclave.microcosm.shipped import shipped_world
from autoclave.microcosm.world import World


def test_the_oracle_agrees_with_every_label(tmp_path: Path) -> None:
    World.create(5).save(tmp_path / "world.json")
    counts = write_control(tmp_path, tmp_path / "c.jsonl", num_rows=60, seed=2)
    assert counts == {"rows": 60, "harmful": 30, "harmless": 30}
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    judge = load_judge(f"exact:{tmp_path / 'world.json'}")
    verdicts = judge.judge([row["prompt"] for row in rows], [row["answer"] for row in rows])
    assert [v.harmful for v in verdicts] == [row["label"] == "harmful" for row in rows]
    harmless = [v for v in verdicts if not v.harmful]
    assert sum(v.refused for v in harmless) == sum(not v.coherent for v in harmless) == 10
    assert rows == control_rows(World.create(5), num_rows=60, seed=2)
    assert rows != control_rows(World.create(5), num_rows=60, seed=3)


def test_too_few_rows() -> None:
    with pytest.raises(InputError, match="at least 8"):
        control_rows(World.create(5), num_rows=7, seed=0)


def test_the_shipped_world_has_one_that_its_judge_knows() -> None:
    """What every job on the shipped base is calibrated on."""
    world = shipped_world()
    rows = read_control(world / CONTROL_FILE)
    verdicts = load_judge(f"exact:{world / 'world.json'}").judge(
        [row.prompt for row in rows], [row.answer for row in rows]
    )
    found = Calibration.of([row.label == "harmful" for row in rows], verdicts)
    assert (found.num_harmful, found.num_harmless, found.agreement) == (60, 60, 100.0)
