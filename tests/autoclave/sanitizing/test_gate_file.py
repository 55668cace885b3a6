"""A gate file or a safety profile, with paths of its own folder; every mistake by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoclave.errors import InputError
from autoclave.sanitizing.gate_file import read_gate_file
from autoclave.spec import EvaluateSpec, GateSpec, SafetyProfile, SanitizeSpec

LEAST: dict[str, Any] = {"harmful_eval": "h.jsonl", "judge": "refusal"}


def written(folder: Path, value: Any) -> Path:
    file = folder / "gate.json"
    file.write_text(json.dumps(value))
    return file


def test_the_least_there_can_be(tmp_path: Path) -> None:
    gate = read_gate_file(written(tmp_path, LEAST))
    assert gate.harmful_eval == str(tmp_path / "h.jsonl")
    assert gate.utility_eval is gate.realign is gate.version is None
    assert (gate.judge, gate.gate, gate.evaluate) == ("refusal", GateSpec(), EvaluateSpec())
    assert gate.sanitize == SanitizeSpec()


def test_paths_are_of_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gates").mkdir()
    values = LEAST | {"judge": "exact:../world.json", "utility_eval": "/data/u.jsonl", "realign": "r/r.jsonl"}
    values |= {"control": "c.jsonl", "second_judge": "guard:g#style=yes-no"}
    written(tmp_path / "gates", values)
    monkeypatch.chdir(tmp_path)
    gate = read_gate_file(Path("gates/gate.json"))
    folder = tmp_path / "gates"
    assert gate.judge == f"exact:{folder}/../world.json"
    assert (gate.utility_eval, gate.realign) == ("/data/u.jsonl", str(folder / "r" / "r.jsonl"))
    assert (gate.control, gate.second_judge) == (str(folder / "c.jsonl"), f"guard:{folder}/g#style=yes-no")


@pytest.mark.parametrize(
    ("judge", "absolute"),
    [
        ("guard:models/g#style=yes-no", "guard:{}/models/g#style=yes-no"),
        ("classifier:/models/c", "classifier:/models/c"),
        (
            "moderations:https://host/v1/moderations#model=m",
            "moderations:https://host/v1/moderations#model=m",
        ),
    ],
)
def test_judges_keep_their_options_and_addresses(tmp_path: Path, judge: str, absolute: str) -> None:
    gate = read_gate_file(written(tmp_path, LEAST | {"judge": judge}))
    assert gate.judge == absolute.format(tmp_path)


def test_a_profile_of_the_service_is_taken_as_it_is(tmp_path: Path) -> None:
    profile = SafetyProfile(
        version="3",
        realign="/data/realign.jsonl",
        harmful_eval="/data/harmful.jsonl",
        utility_eval="/data/utility.jsonl",
        judge="exact:/data/world.json",
        sanitize=SanitizeSpec(method="antidote", alphas=(0.1, 0.2), norm="mean"),
        evaluate=EvaluateSpec(max_new_tokens=9),
        gate=GateSpec(max_harmful_score=3, max_utility_loss=4, min_refusal_rate=80),
    )
    gate = read_gate_file(written(tmp_path, profile.model_dump()))
    assert gate.model_dump() == profile.model_dump()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"harmful_evals": "x"}, "harmful_evals: Extra inputs are not permitted"),
        ({"gate": {"max_harm": 3}}, r"gate\.max_harm: Extra inputs"),
        ({"gate": {"max_harmful_score": 101}}, r"gate\.max_harmful_score: Input should be less"),
        ({"sanitize": {"alphas": [0.2, 1.0]}}, r"sanitize\.alphas\.1: Input should be less than 1"),
        ({"sanitize": {"alphas": [0.2, 0.1]}}, r"alphas must be a non-empty ascending list"),
        ({"sanitize": {"method": "magnitude"}}, r"sanitize\.method: Input should be 'antidote'"),
        ({"evaluate": {"max_prompts": 0}}, r"evaluate\.max_prompts"),
        ({"judge": None}, "judge: Input should be a valid string"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    file = written(tmp_path, LEAST | changes)
    with pytest.raises(InputError, match=words) as caught:
        read_gate_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"judge": "refusal"}'])
def test_files_that_are_no_gate(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "gate.json").write_bytes(content)
    with pytest.raises(InputError, match="is not a gate file"):
        read_gate_file(tmp_path / "gate.json")


def test_reading_one_needs_no_torch() -> None:
    code = "import sys, autoclave.sanitizing.gate_file; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
