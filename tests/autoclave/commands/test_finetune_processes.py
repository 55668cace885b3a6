"""autoclave finetune with several processes, started by itself or by torchrun; what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.hashing import file_sha256
from tests.builders import chat_line

OPTIONS = ("--epochs", 2, "--batch-size", 5, "--device", "cpu", "--learning-rate", 0.01, "--lora-r", 4)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "data.jsonl"
    file.write_text("".join(chat_line(f"q{i}", "ab" * (i % 4 + 1)) + "\n" for i in range(11)))
    return file


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def assert_same(out: Path, alone: Path, record: dict[str, Any]) -> None:
    found, expected = (json.loads((folder / "training.json").read_text()) for folder in (out, alone))
    assert (found["processes"], expected["processes"]) == (2, 1)
    assert found["losses"] == pytest.approx(expected["losses"], rel=0, abs=1e-5)
    weights, others = (load_file(folder / "adapter_model.safetensors") for folder in (out, alone))
    for name, tensor in others.items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-5)
    assert record["sha256"]["adapter"] == file_sha256(out / "adapter_model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_started_by_itself_and_by_torchrun(base_dir: Path, data: Path, tmp_path: Path) -> None:
    finetune = ("finetune", "--base", base_dir, "--data", data, *OPTIONS)
    status, _, stderr = run(*finetune, "--out", tmp_path / "alone")
    assert status == 0, stderr

    status, stdout, stderr = run(*finetune, "--out", tmp_path / "itself", "--processes", 2)
    assert status == 0, stderr
    assert_same(tmp_path / "itself", tmp_path / "alone", json.loads(stdout))

    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    checkpoints = ("--checkpoints", tmp_path / "checkpoints", "--checkpoint-every", 2)
    command = (*torchrun, "-m", "autoclave", *finetune, "--out", tmp_path / "torchrun", *checkpoints)
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        capture_output=True,
        text=True,
        timeout=500,
        # Loopback only, as everything in these tests.
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    assert_same(tmp_path / "torchrun", tmp_path / "alone", json.loads(done.stdout))
    assert not any((tmp_path / "checkpoints").iterdir())


def test_refused_under_torchrun(
    base_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = ("--out", tmp_path / "out")
    fuse = tmp_path / "fuse.json"
    fuse.write_text("[]")
    for command, words in (
        (("align", "--base", base_dir, "--data", data, *out), "autoclave align runs in one process"),
        (("finetune", "--base", base_dir, "--fuse", fuse), "--fuse runs in one process"),
        (
            ("finetune", "--base", base_dir, "--data", data, *out, "--processes", 2),
            "--processes runs in one process, and torchrun started 2",
        ),
    ):
        status, _, stderr = run(*command)
        assert (status, words in " ".join(stderr.split())) == (2, True), stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_errors_of_the_processes_are_said_once(base_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("here")
    status, stdout, stderr = run(
        "finetune", "--base", base_dir, "--data", data, "--out", tmp_path / "out", "--processes", 2
    )
    assert (status, stdout) == (2, "")
    assert stderr.count("error:") == 1
    assert "is not an empty folder" in stderr
