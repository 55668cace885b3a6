"""Steps: kept when whole, taken again under the same key only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autoclave.protocol.steps import RECORD_FILE, Step, StepStore, Workplace

VERSIONS = {"autoclave": "0"}


class Counted:
    """A step that writes a file and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def step(self, inputs: dict[str, Any]) -> Step:
        def work(place: Workplace) -> dict[str, Any]:
            self.calls += 1
            place.checkpoints.mkdir(parents=True, exist_ok=True)
            (place.checkpoints / "at").touch()
            (place.folder / "half.txt").write_text("half")
            if self.fails:
                raise RuntimeError("stopped")
            (place.folder / "whole.txt").write_text("whole")
            return {"calls": self.calls}

        return Step("name", inputs, work)


def test_a_step_is_done_once(tmp_path: Path) -> None:
    counted, store = Counted(), StepStore(tmp_path)
    step = counted.step({"a": 1, "after": {}})
    assert store.find(step) is None
    first = store.run(step, versions=VERSIONS)
    again = store.run(counted.step({"after": {}, "a": 1}), versions={"autoclave": "1"})
    assert (first.result, again.result, counted.calls) == ({"calls": 1}, {"calls": 1}, 1)
    assert (first.reused, again.reused, again.versions) == (False, True, VERSIONS)
    assert (first.folder / "whole.txt").read_text() == "whole"


def test_a_step_that_stops_leaves_no_result_and_its_checkpoints(tmp_path: Path) -> None:
    counted, store = Counted(), StepStore(tmp_path)
    counted.fails = True
    step = counted.step({"a": 1})
    with pytest.raises(RuntimeError):
        store.run(step, versions=VERSIONS)
    assert store.find(step) is None
    left = tmp_path / "steps" / "name" / f".{step.key}.checkpoints" / "at"
    assert left.exists()
    counted.fails = False
    assert store.run(step, versions=VERSIONS).result == {"calls": 2}
    assert not left.exists()
    assert [path.name for path in (tmp_path / "steps" / "name").iterdir()] == [step.key]


@pytest.mark.parametrize("harm", ["file lost", "file cut", "record broken", "record of other inputs"])
def test_a_damaged_result_is_made_again(harm: str, tmp_path: Path) -> None:
    counted, store = Counted(), StepStore(tmp_path)
    step = counted.step({"a": 1})
    folder = store.run(step, versions=VERSIONS).folder
    record = folder / RECORD_FILE
    if harm == "file lost":
        (folder / "whole.txt").unlink()
    elif harm == "file cut":
        (folder / "whole.txt").write_text("wh")
    elif harm == "record broken":
        record.write_text("{")
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"inputs": {"a": 2}}))
    assert store.find(step) is None
    assert store.run(step, versions=VERSIONS).result == {"calls": 2}


def test_changes_are_said_by_field(tmp_path: Path) -> None:
    counted, store = Counted(), StepStore(tmp_path)
    old = {"train": {"lr": 0.1, "seed": 0}, "sha256": {"data.attack": "x"}, "after": {"base": "k1"}}
    assert store.changes(counted.step(old)) == []
    store.run(counted.step(old), versions=VERSIONS)
    new = {"train": {"lr": 0.2, "seed": 0}, "sha256": {"data.attack": "y"}, "after": {"base": "k2"}}
    assert store.changes(counted.step(new)) == [
        "the content of data.attack",
        "train.lr from 0.1 to 0.2",
        "the step base before it",
    ]
