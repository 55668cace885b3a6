"""Bases over HTTP: what is refused at once, what is written, what an admin key may name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.bases import lease
from service.db import Database
from service.models import AlignedBase, BaseRegistration
from service.scopes import Role
from service.settings import Settings
from tests.builders import BASE_ID, Tenant, audit_entries, make_admin, make_base

BASES, REGISTRATIONS = "/organization/bases", "/organization/base_registrations"
HUB = {"source": "acme/tiny", "revision": "c" * 40}


def post(client: TestClient, admin: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(REGISTRATIONS, headers=admin, json=body)
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def refused(client: TestClient, admin: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(REGISTRATIONS, headers=admin, json=body)
    assert answer.status_code == 400, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


def test_a_registration_from_queue_to_cancel(
    client: TestClient, database: Database, admin: dict[str, str], body: dict[str, Any]
) -> None:
    made = post(client, admin, body | {"revision": "r7", "spec": {"lora": {"r": 4}}})
    assert (made["object"], made["status"], made["attempts"]) == (
        "organization.base_registration",
        "queued",
        0,
    )
    assert made["profile"]["gate"]["max_harmful_score"] == 10.0, "every field is written out"
    assert made["spec"]["lora"]["r"] == 4
    assert client.get(f"{REGISTRATIONS}/{made['id']}", headers=admin).json() == made

    active = refused(client, admin, body)
    assert (active["code"], active["param"]) == ("base_registration_active", "name")
    other = post(client, admin, body | {"name": "acme/other"})
    listed = client.get(REGISTRATIONS, headers=admin, params={"limit": 1}).json()
    assert ([row["id"] for row in listed["data"]], listed["has_more"]) == ([other["id"]], True)
    rest = client.get(REGISTRATIONS, headers=admin, params={"after": other["id"]}).json()
    assert ([row["id"] for row in rest["data"]], rest["has_more"]) == ([made["id"]], False)

    cancelled = client.post(f"{REGISTRATIONS}/{made['id']}/cancel", headers=admin).json()
    assert (cancelled["status"], cancelled["cancel_requested"]) == ("cancelled", True)
    again = client.post(f"{REGISTRATIONS}/{made['id']}/cancel", headers=admin)
    assert (again.status_code, again.json()["error"]["code"]) == (400, "base_registration_already_terminal")
    assert post(client, admin, body)["id"] != made["id"], "the name is free again"
    with database.snapshot() as session:
        actions = [entry.action for entry in audit_entries(session)]
    assert actions.count("base_registration.created") == 3
    assert actions.count("base_registration.cancelled") == 1


def test_one_that_runs_is_cancelled_by_its_worker(
    client: TestClient, database: Database, admin: dict[str, str], body: dict[str, Any]
) -> None:
    made = post(client, admin, body)
    with database.transaction() as session:
        claim = lease.claim_next(session, worker_class="x", owner="me", ttl_seconds=60, now=5.0)
    assert claim is not None
    running = client.post(f"{REGISTRATIONS}/{made['id']}/cancel", headers=admin).json()
    assert (running["status"], running["cancel_requested"]) == ("running", True)
    with database.snapshot() as session:
        assert lease.cancel_asked(session, claim)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"name": "a b"}, "name", "cannot be the name of a base"),
        ({"name": "acme/retire"}, "name", "no id ends in /retire"),
        ({"source": "acme/x"}, "source", "needs a revision"),
        ({"source": "acme"}, "source", "no id of a model hub"),
        ({"source": "../acme/x", "revision": "1"}, "source", "no id of a model hub"),
        ({"template": "alpaca"}, "store", "name a new folder in store"),
        ({"template": "nothing"}, "store", "unknown chat template"),
        ({"profile": None}, "profile", "exactly one of profile"),
        ({"profile_of": BASE_ID}, "profile", "exactly one of profile"),
        ({"profile": None, "profile_of": "acme/none"}, "profile_of", "No such base"),
        ({"spec": {"lora": {"r": 0}}}, "spec.lora.r", "greater than or equal to 1"),
        ({"spec": {"defence": {"name": "lisa"}}}, "spec", "needs alignment data"),
        ({"device": "tpu"}, "device", "should match pattern"),
        ({"colour": "red"}, "colour", "Unknown parameter"),
        ({"alignment_method": "a\0b"}, "alignment_method", "NUL"),
    ],
)
def test_what_is_refused_at_once(
    client: TestClient,
    database: Database,
    admin: dict[str, str],
    body: dict[str, Any],
    change: dict[str, Any],
    param: str,
    message: str,
) -> None:
    answer = client.post(REGISTRATIONS, headers=admin, json=body | change)
    error = answer.json()["error"]
    assert answer.status_code in (400, 404)
    assert (error["param"], message in error["message"]) == (param, True), error
    with database.snapshot() as session:
        assert session.query(BaseRegistration).count() == 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"gate": {"max_harmful_score": 200}}, "profile.gate.max_harmful_score", "less than or equal to 100"),
        ({"colour": 1}, "profile.colour", "Unknown parameter"),
        ({"gate": {"max_loss_increase": float("inf")}}, "profile", "cannot be stored"),
        ({"version": "a\0b"}, "profile", "NUL"),
        ({"judge": "oracle"}, "profile", "cannot be named here"),
        ({"judge": "exact:world.json"}, "profile", "absolute path"),
        ({"judge": "guard:/models/g#a"}, "profile", "is no list of options"),
    ],
)
def test_profiles_that_are_refused_at_once(
    client: TestClient,
    admin: dict[str, str],
    body: dict[str, Any],
    change: dict[str, Any],
    param: str,
    message: str,
) -> None:
    sent = json.dumps(body | {"profile": body["profile"] | change})
    headers = {**admin, "content-type": "application/json"}
    answer = client.post(REGISTRATIONS, headers=headers, content=sent)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert (error["param"], message in error["message"]) == (param, True), error


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_profiles_files_are_read_where_they_are(
    client: TestClient, admin: dict[str, str], body: dict[str, Any], models: Path
) -> None:
    profile = body["profile"]
    overlapping = body | {"profile": profile | {"harmful_eval": profile["realign"]}}
    assert "prompts are both in" in refused(client, admin, overlapping)["message"]
    secret = models / "data" / "secret.jsonl"
    secret.write_text('{"messages": [{"role": "user", "content": "the prompt"}, {"role": "teller"}]}\n')
    error = refused(client, admin, body | {"profile": profile | {"realign": str(secret)}})
    assert error["param"] == "profile"
    assert "line 1: " in error["message"]
    assert "the prompt" not in error["message"]
    assert "teller" not in error["message"]
    # Files that are with the workers alone are theirs to look at.
    elsewhere = {"realign": str(models / "r.jsonl"), "harmful_eval": str(models / "e.jsonl")}
    assert post(client, admin, body | {"profile": profile | elsewhere})["status"] == "queued"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_folder_that_is_no_base(
    client: TestClient, admin: dict[str, str], body: dict[str, Any], models: Path
) -> None:
    error = refused(client, admin, body | {"source": str(models / "data")})
    assert (error["param"], "no config.json" in error["message"]) == ("source", True)
    # Where a copy is made, only the copy counts; and what is not here may be with the workers.
    for change in ({"store": str(models / "copy")}, {"source": str(models / "elsewhere")}):
        sent = {"source": str(models / "data"), "name": f"acme/{len(change)}{next(iter(change))}", **change}
        assert post(client, admin, body | sent)["status"] == "queued"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_path_leaves_the_allowed_folders(
    client: TestClient, admin: dict[str, str], body: dict[str, Any], models: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x.jsonl").write_text("{}")
    (models / "link").symlink_to(outside)
    profile = body["profile"]
    for path in (
        "/etc/passwd",
        f"{outside}/x.jsonl",
        f"{models}/../outside/x.jsonl",
        f"{models}-else/x.jsonl",
        f"{models}/link/x.jsonl",
    ):
        for change, param in (
            ({"source": path}, "source"),
            ({"store": path}, "store"),
            ({"profile": None, "profile_file": path}, "profile_file"),
            ({"profile": profile | {"realign": path}}, "profile"),
            ({"profile": profile | {"control": path}}, "profile"),
            ({"profile": profile | {"judge": f"exact:{path}"}}, "profile"),
            ({"profile": profile | {"second_judge": f"guard:{path}"}}, "profile"),
        ):
            error = refused(client, admin, body | change)
            assert (error["code"], error["param"]) == ("path_refused", param), (path, change, error)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_no_judge_gets_the_keys_of_the_workers(
    client: TestClient, admin: dict[str, str], body: dict[str, Any]
) -> None:
    for field in ("judge", "second_judge"):
        profile = body["profile"] | {field: "moderations:https://evil.example/v1#key=AUTOCLAVE_JUDGE_X"}
        error = refused(client, admin, body | {"profile": profile})
        assert (error["code"], "the operator's to choose" in error["message"]) == ("path_refused", True)


@pytest.fixture
def closed(settings: Settings) -> Settings:
    return settings.model_copy(update={"base_folders": Settings.model_fields["base_folders"].default})


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
class TestByDefault:
    @pytest.fixture
    def settings(self, closed: Settings) -> Settings:
        return closed

    def test_no_folder_may_be_named(
        self, client: TestClient, admin: dict[str, str], body: dict[str, Any]
    ) -> None:
        error = refused(client, admin, body)
        assert (error["code"], error["param"]) == ("path_refused", "source")
        assert refused(client, admin, body | HUB)["code"] == "path_refused", "of the profile"

    def test_a_hubs_model_gets_the_profile_of_another_base(
        self, client: TestClient, database: Database, admin: dict[str, str]
    ) -> None:
        with database.transaction() as session:
            theirs = make_base(session).safety_profile
        made = post(client, admin, {"name": "acme/tiny", "profile_of": BASE_ID, **HUB})
        assert (made["profile"], made["profile_of"]) == (theirs, BASE_ID)


def test_bases_are_listed_read_retired_and_brought_back(
    client: TestClient, database: Database, admin: dict[str, str], tenant: Tenant
) -> None:
    measured = {"floor": {"harmful_score": 3.0}, "generation": {"tokens_per_second": 9.0}}
    with database.transaction() as session:
        for name in ("b/2", "a/1", "c"):
            make_base(session, id=name, measurements=measured if name == "c" else None)
    page = client.get(BASES, headers=admin, params={"limit": 2}).json()
    assert ([base["id"] for base in page["data"]], page["has_more"]) == (["a/1", "b/2"], True)
    last = client.get(BASES, headers=admin, params={"after": "b/2"}).json()
    assert ([base["id"] for base in last["data"]], last["has_more"]) == (["c"], False)
    assert (last["data"][0]["harmful_score"], last["data"][0]["tokens_per_second"]) == (3.0, 9.0)
    base = client.get(f"{BASES}/b%2F2", headers=admin).json()
    assert (base["id"], base["path"], base["profile"]["judge"]) == ("b/2", "/nowhere/base", "refusal")

    def models() -> list[str]:
        return [model["id"] for model in client.get("/models", headers=tenant.headers).json()["data"]]

    for _ in range(2):
        assert client.post(f"{BASES}/b/2/retire", headers=admin).json()["retired_at"] is not None
    assert models() == ["a/1", "c"]
    assert [base["id"] for base in client.get(BASES, headers=admin).json()["data"]] == ["a/1", "c"]
    everything = client.get(BASES, headers=admin, params={"include_retired": True}).json()["data"]
    assert len(everything) == 3
    for _ in range(2):
        assert client.post(f"{BASES}/b/2/restore", headers=admin).json()["retired_at"] is None
    assert models() == ["a/1", "b/2", "c"]
    with database.snapshot() as session:
        entries = [entry for entry in audit_entries(session) if entry.object_id == "b/2"]
    assert [entry.action for entry in entries] == ["base.retired", "base.restored"]
    assert all(entry.actor.startswith("adminkey_") for entry in entries)

    for method, path in (
        ("GET", f"{BASES}/none"),
        ("POST", f"{BASES}/none/retire"),
        ("POST", f"{BASES}/none/restore"),
        ("GET", f"{BASES}?after=none"),
    ):
        answer = client.request(method, path, headers=admin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "base_not_found")
    wrong = client.get(f"{BASES}/a/1/retire", headers=admin)
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("role", [Role.OWNER, Role.READER])
def test_other_admins_have_nothing_to_do_with_bases(
    client: TestClient, database: Database, tenant: Tenant, body: dict[str, Any], role: Role
) -> None:
    """They belong to an organization, and bases are everybody's."""
    with database.transaction() as session:
        make_base(session)
    headers = make_admin(database, tenant.organization_id, role=role)
    for method, path in (
        ("GET", BASES),
        ("GET", f"{BASES}/{BASE_ID}"),
        ("POST", f"{BASES}/{BASE_ID}/retire"),
        ("GET", REGISTRATIONS),
        ("POST", REGISTRATIONS),
    ):
        answer = client.request(method, path, headers=headers, json=body if method == "POST" else None)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
    with database.snapshot() as session:
        assert session.get_one(AlignedBase, BASE_ID).retired_at is None


def test_two_requests_for_one_name_at_once(
    database: Database, client: TestClient, admin: dict[str, str], body: dict[str, Any]
) -> None:
    """Whoever comes second is told, not crashed upon: the database has the last word."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: client.post(REGISTRATIONS, headers=admin, json=body), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    codes = {answer.json()["error"]["code"] for answer in answers if answer.status_code == 400}
    assert codes == {"base_registration_active"}
