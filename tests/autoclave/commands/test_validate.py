"""`autoclave validate`: JSON on stdout, tables on stderr, exit status 1 for a file that cannot be used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.errors import InputError
from autoclave.microcosm.shipped import shipped_world


def row(question: str) -> str:
    return json.dumps(
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "a"}]}
    )


@pytest.fixture
def training(tmp_path: Path) -> Path:
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join(row(f"q{n % 11}") for n in range(12)))
    return file


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["validate", *map(str, arguments)], env={"COLUMNS": "200"})


def test_a_good_file(training: Path) -> None:
    result = run(training, "--base", shipped_world() / "aligned", "--max-seq-length", 8)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["training"]
    assert (found["valid"], found["num_examples"], found["duplicates"]["num_rows"]) == (True, 12, 1)
    assert found["tokens"]["num_rows"] == 12
    for words in ("can be used", "tokens a row", "12 user", "say again", "tokens are trained"):
        assert words in result.stderr


def test_broken_and_shared_lines_are_named(training: Path, tmp_path: Path) -> None:
    validation = tmp_path / "valid.jsonl"
    validation.write_text(row("Q3") + "\n" + '{"messages": []}\n')
    result = run(training, "--validation", validation)
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["overlap"]["first"] == [{"line": 1, "first_line": 4}]
    assert found["training"]["valid"]
    assert [(issue["line"], issue["pointer"]) for issue in found["validation"]["issues"]] == [
        (2, "/messages")
    ]
    assert "line 2 at /messages" in result.stderr
    assert "1 = 4" in result.stderr


def test_a_file_that_is_not_there() -> None:
    result = run("/nowhere/data.jsonl")
    assert isinstance(result.exception, InputError | SystemExit)
    assert result.exit_code != 0


def test_no_torch(training: Path) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from autoclave.cli import app; "
        f"assert CliRunner().invoke(app, ['validate', {str(training)!r}]).exit_code == 0; "
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
