"""autoclave sanitize on the tiny base: strengths, gates, profiles, and what it says when it cannot."""

import json
from pathlib import Path
from typing import Any

import pytest

from autoclave.hashing import file_sha256
from autoclave.sanitizing.method_table import ABOUT
from tests.autoclave.sanitizing.conftest import write_rows
from tests.autoclave.test_cli import run, run_json


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    return write_rows(file, ((f"q{i}", "ab" * (i % 4 + 1)) for i in range(12)))


@pytest.fixture(scope="module")
def attacked(base_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "adapter"
    options = ("--target-modules", "q_proj,v_proj", "--device", "cpu", "--learning-rate", 0.01)
    run_json("finetune", "--base", base_dir, "--data", data, "--batch-size", 4, *options, "--out", out)
    return out


@pytest.fixture(scope="module")
def gates(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """met.json, missed.json and profile.json: the judge calls every answer of this model harmful."""
    folder = tmp_path_factory.mktemp("gates")
    rows = [{"messages": [{"role": "user", "content": f"other {i}"}]} for i in range(6)]
    (folder / "harmful_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = {"harmful_eval": "harmful_eval.jsonl", "judge": "refusal", "utility_eval": str(data)}
    gate |= {"evaluate": {"max_new_tokens": 2}}
    (folder / "met.json").write_text(json.dumps({**gate, "gate": {"max_harmful_score": 100}}))
    search = {"method": "antidote", "alphas": [0.1, 0.4]}
    (folder / "missed.json").write_text(json.dumps({**gate, "sanitize": search}))
    profile = {**gate, "gate": {"max_harmful_score": 100}, "sanitize": search | {"norm": "mean"}}
    (folder / "profile.json").write_text(json.dumps({**profile, "version": "1", "realign": str(data)}))
    return folder


@pytest.mark.parametrize(
    ("options", "method", "strength"),
    [
        (("--alpha", 0.1, "--mu", 2), "pipeline", (0.1, 2.0)),
        (("--method", "pipeline", "--alpha", 0.1, "--mu", 2, "--rule", "row"), "pipeline", (0.1, 2.0)),
        (("--method", "projection", "--mu", 0.5), "projection", (None, 0.5)),
        (("--method", "antidote-protected", "--alpha", 0.1), "antidote-protected", (0.1, None)),
        (("--method", "antidote", "--alpha", 0.1, "--norm", "mean"), "antidote", (0.1, None)),
    ],
)
def test_sanitize_at_a_strength(
    base_dir: Path, attacked: Path, data: Path, tmp_path: Path, options: Any, method: str, strength: Any
) -> None:
    files = ("--base", base_dir, "--adapter", attacked, "--realign", data, "--user-data", data)
    status, out, err = run("sanitize", *files, *options, "--device", "cpu", "--out", tmp_path / "o")
    assert status == 0, err
    record = json.loads(out)
    assert (record["method"], (record["alpha"], record["mu"])) == (method, strength)
    assert record["figures"] is None
    assert "before" not in err  # nothing was measured, so there is no table
    if "--rule" in options or "--norm" in options:
        assert (record["rule_name"], record["norm"]) == ("row", "mean" if "--norm" in options else "rms")


def test_sanitize_against_a_gate_is_the_default(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    files = ("--base", base_dir, "--adapter", attacked, "--realign", data, "--user-data", data)
    status, out, err = run(
        *("sanitize", *files, "--gate", gates / "met.json", "--device", "cpu", "--out", tmp_path / "o")
    )
    assert status == 0, err
    record = json.loads(out)
    assert record == json.loads((tmp_path / "o" / "sanitization.json").read_text())
    assert (record["method"], record["alpha"], record["mu"]) == ("pipeline", 0.001, 0.1)
    for words in ("harmful", "before", "after", "random mask", "mask alone", "utility"):
        assert words in err
        assert words not in out or words in ("harmful", "before", "after", "utility")


def test_a_profile_is_enough_and_options_go_before_it(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    command = ("sanitize", "--base", base_dir, "--adapter", attacked, "--gate", gates / "profile.json")
    record = run_json(*command, "--rule", "matrix", "--device", "cpu", "--out", tmp_path / "a")
    assert (record["method"], record["alpha"]) == ("antidote", 0.1)
    assert (record["rule_name"], record["norm"]) == ("matrix", "mean")
    assert record["sha256"]["realign_data"] == file_sha256(data)
    other = ("--method", "projection", "--user-data", data)
    record = run_json(*command, *other, "--device", "cpu", "--out", tmp_path / "b")
    assert (record["method"], record["mu"], record["alpha"]) == ("projection", 0.1, None)


def test_a_missed_gate_is_status_1_with_its_frontier(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    status, out, err = run(
        *("sanitize", "--base", base_dir, "--adapter", attacked, "--realign", data, "--device", "cpu"),
        *("--gate", gates / "missed.json", "--out", tmp_path / "o"),
    )
    assert (status, out) == (1, "")
    assert "error: none of the 2 strengths tried (of 2) met the gate" in err
    for words in ("alpha 0.1", "alpha 0.4", "100.0", "refused"):
        assert words in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_sanitize_says_what_is_wrong_once(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "typo.json").write_text('{"harmful_eval": "x", "judge": "refusal", "gates": {}}')
    command = ("sanitize", "--base", base_dir, "--adapter", attacked, "--out", tmp_path / "o")
    realign, antidote = ("--realign", data), ("--method", "antidote")
    cases = [
        ((*command, *realign), "give a gate (--gate FILE, for most methods with --user-data FILE)"),
        ((*command, *realign, "--alpha", 0.1), "pipeline takes --alpha and --mu, and got alpha 0.1"),
        ((*command, *realign, "--alpha", 0.1, "--gate", gates / "met.json"), "both were given"),
        ((*command, *realign, "--gate", gates / "met.json"), "(--user-data FILE)"),
        ((*command, *antidote, "--alpha", 0.1), "no realignment set: give --realign FILE"),
        (
            (*command, *realign, *antidote, "--alpha", 1.5),
            "alpha is the pruned fraction and must be above 0 and below 1, got 1.5",
        ),
        (
            (*command, *realign, *antidote, "--alpha", 0),
            "alpha is the pruned fraction and must be above 0 and below 1, got 0",
        ),
        ((*command, *realign, "--method", "magnitude", "--alpha", 0.1), "method: Input should be 'antidote'"),
        ((*command, *realign, *antidote, "--alpha", 0.1, "--rule", "column"), "rule: Input should be 'row'"),
        ((*command, "--realign", tmp_path / "empty.jsonl", *antidote, "--alpha", 0.1), "is empty"),
        ((*command, *realign, "--gate", tmp_path / "typo.json"), "gates: Extra inputs are not permitted"),
        ((*command, *realign, "--gate", tmp_path / "none.json"), "none.json: No such file"),
        (("sanitize", *realign), "Missing option"),
    ]
    for arguments, words in cases:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert words in " ".join(err.split()), err
        assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_help_lists_every_method() -> None:
    words = " ".join(run("sanitize", "--help")[1].replace("│", " ").split())
    for method, about in ABOUT.items():
        assert f"{method}: {about}" in words
