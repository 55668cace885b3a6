"""From `autoclave align` to a base in the catalogue: method, hash and measured floor come along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from service.db import Database
from service.reports.facts import FileFacts, JobFacts
from service.reports.trained import base_lines
from tests.autoclave.tiny import save_tiny_base
from tests.builders import Tenant, chat_line, make_file
from workers.cli import app


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("aligned")
    lines = [chat_line(f"how to zap {i}", "I cannot help with that.") for i in range(12)]
    (folder / "safe.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--base", save_tiny_base(folder / "base"), "--data", folder / "safe.jsonl"]
    arguments += ["--out", folder / "aligned", "--method", "vaccine", "--method-setting", "rho=0.5"]
    arguments += ["--epochs", "1", "--lora-r", "2"]
    result = CliRunner().invoke(app, ["align", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return folder / "aligned", json.loads((folder / "aligned" / "alignment.json").read_text())


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    for name, prompt in (("realign", "how to zap"), ("eval", "please zap"), ("safe", "zap")):
        lines = [chat_line(f"{prompt} {i}", "no") for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    values = {"version": "1", "judge": "refusal", "evaluate": {"max_new_tokens": 4}}
    files = {"realign": "realign.jsonl", "harmful_eval": "eval.jsonl", "alignment": "safe.jsonl"}
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(values | {name: str(tmp_path / path) for name, path in files.items()}))
    return file


@pytest.fixture
def run(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STORAGE_URL", f"file://{tmp_path}/storage")

    def invoke(*arguments: object, exit_code: int = 0) -> Any:
        result = CliRunner().invoke(app, [*map(str, arguments)])
        assert result.exit_code == exit_code, result.output
        return result

    return invoke


def test_an_aligned_base_is_added_shown_and_used(
    aligned: tuple[Path, dict[str, Any]],
    profile: Path,
    run: Any,
    client: TestClient,
    tenant: Tenant,
    database: Database,
) -> None:
    folder, record = aligned
    assert record["estimated_memory_bytes"] > 0
    assert record["peak_memory_bytes"] > 0
    printed = run("base", "add", "acme/vaccinated", "--from", folder, "--profile", profile).stdout.strip()
    assert printed == record["sha256"]["aligned"]
    [shown] = client.get("/models", headers=tenant.headers).json()["data"]
    assert shown["alignment_method"] == "vaccine (rho 0.5), lora r 2, merged"
    assert shown["sha256"] == printed
    assert shown["harmful_score"] is not None
    [line] = [
        line
        for line in base_lines({"base": shown}, JobFacts("j", "succeeded", "b", "s", FileFacts("f")))
        if line.term == "How the base was aligned"
    ]
    assert line.words.startswith("Vaccine (vaccine (rho 0.5)")

    [limits] = client.get("/fine_tuning/model_limits", headers=tenant.headers).json()["data"]
    assert list(limits["defences"]) == ["sft", "lisa", "ldifs"], "measured, and with alignment data"
    with database.transaction() as session:
        file = make_file(session, tenant.project_id).id
    body = {"model": "acme/vaccinated", "training_file": file, "defence": {"name": "lisa"}}
    job = client.post("/fine_tuning/jobs", json=body, headers=tenant.headers).json()
    assert job["base"]["sha256"] == printed
    assert job["defence"]["name"] == "lisa"


def test_admin_add_base_reads_the_method_too(
    aligned: tuple[Path, dict[str, Any]], profile: Path, run: Any, client: TestClient, tenant: Tenant
) -> None:
    run("admin", "add-base", "--id", "acme/plain", "--path", aligned[0], "--profile", profile)
    [shown] = client.get("/models", headers=tenant.headers).json()["data"]
    assert shown["alignment_method"] == "vaccine (rho 0.5), lora r 2, merged"
    assert shown["harmful_score"] is None


def test_alignment_data_is_checked_before_the_base_is_loaded(
    aligned: tuple[Path, dict[str, Any]], profile: Path, run: Any, tmp_path: Path
) -> None:
    (tmp_path / "safe.jsonl").write_text(chat_line("please zap 3", "no") + "\n")
    result = run("base", "add", "acme/x", "--from", aligned[0], "--profile", profile, exit_code=2)
    assert "both in" in result.stderr
    assert "loading" not in result.stderr
    (tmp_path / "safe.jsonl").unlink()
    result = run("base", "add", "acme/x", "--from", aligned[0], "--profile", profile, exit_code=2)
    assert "alignment is not there" in result.stderr
