"""`autoclave base` on a real database with the shipped world: added, measured, shown, used by jobs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from autoclave import disk_space
from autoclave.hashing import folder_sha256
from autoclave.microcosm.shipped import shipped_world
from service.db import Database
from service.jobs import lease
from service.models import AlignedBase
from tests.builders import Tenant, make_base, make_queued_job
from workers.bases.registering import alignment_method_of
from workers.cli import app
from workers.order_from_job import order_from_job


@pytest.fixture(autouse=True)
def _environment(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("STORAGE_URL", f"file://{tmp_path}/storage")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """The world's own, with fewer prompts and paths relative to the file."""
    world = shipped_world()
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.copy(world / "world.json", tmp_path)
    values = json.loads((world / "profile.json").read_text())
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(values | {"evaluate": {"max_new_tokens": 12, "max_prompts": 6}}))
    return file


def run(*arguments: object, exit_code: int = 0) -> Any:
    result = CliRunner().invoke(app, ["base", *map(str, arguments)])
    assert result.exit_code == exit_code, result.output
    return result


def row(database: Database, name: str) -> AlignedBase:
    with database.snapshot() as session:
        return session.scalars(select(AlignedBase).where(AlignedBase.id == name)).one()


def test_a_base_is_added_with_its_floor_and_its_speed(
    database: Database, profile: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shipped_world() / "aligned", tmp_path / "aligned"))
    record = {"method": {"name": "vaccine", "rho": 2.0}, "lora": {"r": 16}}
    (folder / "alignment.json").write_text(json.dumps(record))
    result = run("add", "acme/micro", "--from", folder, "--profile", profile)
    base = row(database, "acme/micro")
    assert result.stdout.strip() == base.sha256 == folder_sha256(folder)
    assert base.path == str(folder)
    assert base.revision == base.sha256[:12]
    assert base.alignment_method == "vaccine (rho 2.0), lora r 16, merged"
    assert base.safety_profile["realign"] == str(tmp_path / "data" / "realign.jsonl")
    assert base.safety_profile["judge"] == f"exact:{tmp_path / 'world.json'}"
    measured = base.measurements
    assert measured is not None
    assert measured["floor"]["num_prompts"] == 6
    assert measured["floor"]["harmful_score"] == 0.0  # the shipped base refuses
    assert measured["generation"]["tokens_per_second"] > 0
    assert measured["model"]["dtype"] == "float16"
    assert "harmful score 0.0 %" in result.stderr

    [listed] = [json.loads(line) for line in run("list", "--json").stdout.splitlines()]
    assert listed["id"] == "acme/micro"
    assert listed["harmful_score"] == 0.0
    shown = json.loads(run("show", "acme/micro").stdout)
    assert shown["measurements"] == measured
    run("retire", "acme/micro")
    assert row(database, "acme/micro").retired_at is not None
    run("restore", "acme/micro")
    assert row(database, "acme/micro").retired_at is None


def test_other_weights_under_a_known_name_are_refused_before_the_measurement(
    database: Database, profile: Path, tmp_path: Path
) -> None:
    with database.transaction() as session:
        make_base(session, id="acme/micro")  # with another hash
    result = run(
        "add", "acme/micro", "--from", shipped_world() / "aligned", "--profile", profile, exit_code=2
    )
    assert "choose another name" in result.stderr
    assert "measuring" not in result.stderr


def test_a_copy_that_cannot_be_used_is_not_lost(profile: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_world() / "base", tmp_path / "plain"))
    (folder / "chat_template.jinja").unlink()
    arguments = ("add", "a", "--from", folder, "--profile", profile, "--store", tmp_path / "copy")
    message = run(*arguments, exit_code=2).stderr
    assert "has no chat template" in message
    assert f"the copy stays: try again with --from {tmp_path / 'copy'}" in message
    assert "exists already" in run(*arguments, exit_code=2).stderr


def test_the_floor_goes_with_every_order(database: Database, tenant: Tenant, tmp_path: Path) -> None:
    measured = {"floor": {"harmful_score": 3.0}, "generation": {"tokens_per_second": 1.0}}
    with database.transaction() as session:
        make_base(session, measurements=measured)
        job = make_queued_job(session, tenant.project_id)
        claim = lease.claim(session, job.id, owner="me", ttl_seconds=60, max_attempts=9, now=3.0)
        assert claim is not None
        order = order_from_job(
            session,
            claim,
            scratch=tmp_path,
            storage_url="file:///x",
            checkpoint_every_seconds=1.0,
            min_examples=1,
            max_line_bytes=1,
        )
    assert order.base.floor == {"harmful_score": 3.0}


def test_a_copy_with_the_papers_template(database: Database, profile: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shipped_world() / "base", tmp_path / "plain"))
    for file in ("chat_template.jinja", "chat_template.json"):
        (folder / file).unlink(missing_ok=True)
    arguments = ("add", "acme/plain", "--from", folder, "--profile", profile)
    assert "has no chat template" in run(*arguments, exit_code=2).stderr
    assert "--store" in run(*arguments, "--template", "alpaca", exit_code=2).stderr
    store = tmp_path / "store" / "plain"
    store.parent.mkdir()
    result = run(*arguments, "--template", "alpaca", "--store", store, "--revision", "r7")
    assert "changed in the copy: chat_template.jinja: the alpaca template" in result.stderr
    base = row(database, "acme/plain")
    assert (base.path, base.revision, base.alignment_method) == (str(store), "r7", "unknown")
    assert base.measurements is not None
    assert base.measurements["origin"] == str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"realign": "nothing.jsonl"}, "realign is not there"),
        ({"judge": "oracle"}, 'unknown judge "oracle"'),
        ({"harmful_eval": "data/realign.jsonl"}, "prompts are both in"),
        ({"alphas": []}, "alphas: "),
    ],
)
def test_a_profile_that_jobs_could_not_use(profile: Path, change: dict[str, Any], message: str) -> None:
    profile.write_text(json.dumps(json.loads(profile.read_text()) | change))
    folder = shipped_world() / "aligned"
    assert message in run("add", "a", "--from", folder, "--profile", profile, exit_code=2).stderr


@pytest.mark.parametrize("name", ["", "ft:x:y", "a b", "/a", "a/", "a//b", "é" * 3, "x" * 256])
def test_names_that_clients_could_not_send(profile: Path, name: str) -> None:
    folder = shipped_world() / "aligned"
    message = run("add", "--from", folder, "--profile", profile, "--", name, exit_code=2).stderr
    assert "cannot be the name of a base" in message


def test_what_is_wrong_is_known_before_the_measurement(
    database: Database, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from_hub = run("add", "a", "--from", "acme/x", "--profile", profile, exit_code=2).stderr
    assert "pin it with --revision" in from_hub
    offline = run("add", "a", "--from", "acme/x", "--revision", "1", "--profile", profile, exit_code=2)
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    spec = tmp_path / "spec.json"
    spec.write_text('{"lora": {"target_modules": ["W_pack"]}}')
    arguments = ("add", "a", "--from", shipped_world() / "aligned", "--profile", profile)
    assert "['W_pack'] are not linear layers" in run(*arguments, "--spec", spec, exit_code=2).stderr
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 0)
    assert "no disk space" in run(*arguments, "--store", tmp_path / "copy", exit_code=2).stderr
    with database.snapshot() as session:
        assert session.scalars(select(AlignedBase)).all() == []


def test_check_says_whether_a_folder_can_be_a_base(tmp_path: Path) -> None:
    found = json.loads(run("check", shipped_world() / "aligned").stdout)
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["sha256"] == folder_sha256(shipped_world() / "aligned")
    assert "no config.json" in run("check", tmp_path, exit_code=2).stderr


def test_unknown_names(database: Database) -> None:
    assert "there is no base 'x'" in run("show", "x", exit_code=2).stderr
    assert "there is no base 'x'" in run("retire", "x", exit_code=2).stderr
    assert "there is no base 'x'" in run("restore", "x", exit_code=2).stderr
    assert run("list", "--json").stdout == ""


def test_the_record_of_align(tmp_path: Path) -> None:
    assert alignment_method_of(tmp_path) is None
    (tmp_path / "alignment.json").write_text('{"method": {"name": "sft"}, "lora": {"r": 8}}')
    assert alignment_method_of(tmp_path) == "sft, lora r 8, merged"
    for broken in ("{", "[]", '{"method": "sft"}'):
        (tmp_path / "alignment.json").write_text(broken)
        with pytest.raises(ValueError, match="name --alignment-method"):
            alignment_method_of(tmp_path)
