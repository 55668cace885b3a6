"""The console script: operators' commands on a real database, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from service import auth
from service.db import Database
from service.models import AlignedBase, Organization, Project
from workers.cli import app


@pytest.fixture
def database_url(sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    monkeypatch.setenv("DATABASE_URL", sqlite_url)
    monkeypatch.setenv("STORAGE_URL", f"file://{tmp_path}/storage")
    return sqlite_url


def admin(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, ["admin", *arguments])
    assert result.exit_code == exit_code, result.output
    return (result.stdout if exit_code == 0 else result.stderr).strip()


def test_the_first_key_of_an_empty_database(database: Database) -> None:
    key = admin("create-key", "--project", "default")
    with database.snapshot() as session:
        found = auth.find_api_key(session, key)
        assert found is not None
        assert found[1].name == "default"
    assert "there is no project 'other'" in admin("create-key", "--project", "other", exit_code=2)
    admin("revoke-key", "--key", found[0].id)
    with database.snapshot() as session:
        assert auth.find_api_key(session, key) is None


def test_organization_project_key(database: Database) -> None:
    organization = admin("create-organization", "--name", "Acme")
    project = admin("create-project", "--organization", organization, "--name", "research")
    keys = {admin("create-key", "--project", wanted) for wanted in (project, "research")}
    assert len(keys) == 2
    with database.snapshot() as session:
        assert session.get_one(Organization, organization).name == "Acme"
        assert session.get_one(Project, project).organization_id == organization
    admin("create-project", "--organization", organization, "--name", "research")
    assert "2 projects are called 'research'" in admin("create-key", "--project", "research", exit_code=2)
    assert "there is no organization" in admin(
        "create-project", "--organization", "org-x", "--name", "x", exit_code=2
    )


def test_add_and_retire_a_base(database: Database, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    profile = tmp_path / "profile.json"
    values = {"version": "3", "realign": "/r.jsonl", "harmful_eval": "/h.jsonl", "judge": "refusal"}
    profile.write_text(json.dumps(values))
    arguments = ["add-base", "--id", "acme/base", "--path", str(folder), "--profile", str(profile)]

    sha256 = admin(*arguments)
    with database.snapshot() as session:
        base = session.scalars(select(AlignedBase)).one()
    assert (base.id, base.sha256, base.path) == ("acme/base", sha256, str(folder))
    assert base.safety_profile["version"] == "3"

    (folder / "config.json").write_text("{ }")
    assert "register it under a new id" in admin(*arguments, exit_code=2)
    profile.write_text(json.dumps(values | {"judge": 7, "alpha": 1}))
    message = admin(*arguments, exit_code=2)
    assert "judge: " in message
    assert "alpha: " in message
    profile.write_text(json.dumps(values | {"realign": "data/r.jsonl"}))
    assert "realign must be an absolute path" in admin(*arguments, exit_code=2)

    admin("retire-base", "--id", "acme/base")
    with database.snapshot() as session:
        assert session.scalars(select(AlignedBase)).one().retired_at is not None


def test_migrate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("STORAGE_URL", f"file://{tmp_path}/storage")
    assert "autoclave admin migrate" in admin("create-organization", "--name", "x", exit_code=2)
    admin("migrate")
    admin("migrate")
    assert admin("create-organization", "--name", "x").startswith("org-")


def test_a_data_directory_that_is_none(tmp_path: Path) -> None:
    assert "is no data directory" in admin("migrate", "--data-dir", str(tmp_path / "x"), exit_code=2)


def test_missing_settings_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("STORAGE_URL", raising=False)
    assert "DATABASE_URL" in admin("migrate", exit_code=2)


@pytest.mark.parametrize("arguments", [["--help"], ["admin", "--help"], ["api", "--help"], ["up", "--help"]])
def test_help_loads_neither_torch_nor_celery(arguments: list[str]) -> None:
    """The API image holds neither."""
    code = f"""
import sys
sys.argv = ["autoclave", *{arguments!r}]
from workers.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "transformers", "celery", "redis", "openai"}} & sys.modules.keys()
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
