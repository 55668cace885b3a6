"""autoclave data: a set made and checked, and what is wrong with either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.hashing import file_sha256


def run(*arguments: object, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def test_sets_are_made_apart_and_checked(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    rows = "".join(f"placeholder request of the kind {word},target {word}\n" for word in "abcdefghij")
    source.write_text("question,target\n" + rows)
    learned, asked = tmp_path / "realign.jsonl", tmp_path / "eval.jsonl"
    options = ("--format", "behaviours", "--in", source, "--column", "behaviour=question")
    made = run("convert", *options, "--kind", "realignment", "--out", learned, "--set-version", "7")
    manifest = json.loads(made.stdout)
    assert (manifest["version"], manifest["examples"]) == ("7", 10)
    assert manifest["sha256"] == file_sha256(learned)
    more = (*options, "--kind", "evaluation", "--out", asked)
    assert "10 left out: prompt is near" in run("convert", *more, "--apart-from", learned, exit_code=2).stderr
    run("convert", *more, "--limit", "3")
    result = run("check", learned, asked, exit_code=2)
    assert "3 prompts are in both" in result.stderr
    assert json.loads(result.stdout)["overlaps"][0]["exact"] == 3
    assert "placeholder" not in result.output
    run("check", learned, asked, "--report")
    run("check", asked)


def test_what_is_wrong_with_the_options(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x.jsonl")
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "placeholder"}\n')
    given = ("--in", source, *out)
    for options, message in (
        (("--format", "chat", "--kind", "test", *given), 'unknown kind of set "test"'),
        (("--format", "x", "--kind", "training", *given), 'unknown format "x"'),
        (
            ("--format", "chat", "--kind", "training", *given),
            "the columns 'prompt', and chat needs \"messages\"",
        ),
        (("--format", "chat", "--kind", "training", *given, "--column", "x"), "write NEEDED=FOUND"),
        (("--format", "chat", "--kind", "training", "--in", "hub:a", *out), "does not name a file of a hub"),
    ):
        assert message in " ".join(run("convert", *options, exit_code=2).stderr.split())
