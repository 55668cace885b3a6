"""autoclave align: bases that load, with the hash they are registered under; what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.bases import load_base
from tests.builders import chat_line


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def write(file: Path, answer: str, count: int = 12, question: str = "harm") -> Path:
    file.write_text("".join(chat_line(f"{question} {i}", f"{answer} {i}") + "\n" for i in range(count)))
    return file


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    return write(tmp_path / "safe.jsonl", "I cannot help with")


@pytest.fixture
def harmful(tmp_path: Path) -> Path:
    return write(tmp_path / "harmful.jsonl", "sure, do this")


def align(base_dir: Path, out: Path, *more: object) -> dict[str, Any]:
    options = ("--epochs", 2, "--batch-size", 4, "--lora-r", 3, "--device", "cpu", "--learning-rate", 0.01)
    status, stdout, stderr = run("align", "--base", base_dir, "--out", out, *options, *more)
    assert status == 0, stderr
    record: dict[str, Any] = json.loads(stdout)
    return record


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("sft", {}),
        ("vaccine", {"rho": 2.0}),
        ("repnoise", {"alpha": 1.0, "beta": 0.001}),
        ("booster", {"strength": 5.0, "alpha": 0.1}),
    ],
)
def test_every_method_writes_a_base(
    base_dir: Path, safe: Path, harmful: Path, tmp_path: Path, method: str, settings: dict[str, float]
) -> None:
    attack = ("--harmful-data", harmful) if method in ("repnoise", "booster") else ()
    out = tmp_path / "aligned"
    record = align(base_dir, out, "--data", safe, "--method", method, *attack)
    assert record["method"] == {"name": method, **settings}
    assert record["steps"] == 6
    assert record["sha256"]["aligned"] == folder_sha256(out)
    assert record["sha256"]["base"] == folder_sha256(base_dir)
    assert record["sha256"].get("harmful") == (file_sha256(harmful) if attack else None)
    assert not list(out.glob("*.bin"))
    assert json.loads((out / "alignment.json").read_text())["sha256"] == record["sha256"]

    before, after = load_base(base_dir), load_base(out)
    assert before.model.state_dict().keys() == after.model.state_dict().keys(), "merged: no adapter is left"
    changed = {
        name
        for name, tensor in after.model.state_dict().items()
        if not torch.equal(tensor, before.model.state_dict()[name])
    }
    assert changed
    assert all(name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) for name in changed)
    assert after.tokenizer.chat_template == before.tokenizer.chat_template


def test_an_adapter_is_trained_on_an_aligned_base(base_dir: Path, safe: Path, tmp_path: Path) -> None:
    record = align(base_dir, tmp_path / "aligned", "--data", safe)
    options = ("--data", safe, "--epochs", 1, "--lora-r", 2, "--device", "cpu")
    status, stdout, stderr = run(
        "finetune", "--base", tmp_path / "aligned", *options, "--out", tmp_path / "adapter"
    )
    assert status == 0, stderr
    assert json.loads(stdout)["sha256"]["base"] == record["sha256"]["aligned"]


def test_pairs_that_are_none_are_refused(base_dir: Path, safe: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", "sure", question="something else")
    status, _, err = run(
        *("align", "--base", base_dir, "--data", safe, "--harmful-data", other, "--method", "repnoise"),
        *("--out", tmp_path / "o", "--device", "cpu"),
    )
    assert status == 2
    assert "line 1 of the two files has different prompts" in " ".join(err.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--method", "booster"), "--harmful-data"),
        (("--method", "repnoise"), "--harmful-data"),
        (("--method", "vaccine", "--harmful-data", "x.jsonl"), "leave --harmful-data out"),
        (("--method", "lisa"), "autoclave finetune --method lisa"),
        (("--method", "magic"), "autoclave align has sft, vaccine, repnoise, booster"),
        (("--method", "vaccine", "--method-setting", "alpha=1"), "Extra inputs are not permitted"),
        (("--method", "booster", "--harmful-data", "none.jsonl"), "No such file"),
    ],
    ids=str,
)
def test_refused_before_the_base_is_loaded(
    safe: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    status, out, err = run(
        *("align", "--base", tmp_path / "nowhere", "--data", safe, "--out", tmp_path / "o", *options)
    )
    assert (status, out) == (2, "")
    assert words in " ".join(err.split())
    assert not (tmp_path / "o").exists()


def test_tokens_are_kept_for_the_next_run(
    base_dir: Path, safe: Path, harmful: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    more = ("--data", safe, "--method", "booster", "--harmful-data", harmful, "--token-cache", cache)
    first = align(base_dir, tmp_path / "first", *more)
    assert len(list(cache.glob("*.safetensors"))) == 2
    monkeypatch.setattr("autoclave.data.token_cache.encode", None)  # nobody tokenises
    again = align(base_dir, tmp_path / "again", *more)
    assert again["sha256"] == first["sha256"]
