"""A registration on a worker: every way it can end, with real processes; and one with the real child."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fastapi.testclient import TestClient

from autoclave.hashing import folder_sha256
from autoclave.microcosm.shipped import shipped_world
from service.bases import doorbells, lease
from service.db import Database
from service.models import AlignedBase, BaseRegistration
from service.settings import Settings
from service.storage import Storage
from tests.builders import Tenant, audit_entries, make_base
from tests.hub import COMMIT, PUBLIC, running_hub
from tests.waiting import wait_until
from tests.workers.bases import children
from workers.bases.order import RegistrationOrder, environment_for
from workers.bases.taking import RegistrationTaker
from workers.child import child_environment
from workers.maintenance import Maintenance
from workers.scratch_space import ScratchSpace
from workers.supervisor import Supervisor, limits_from_settings

REGISTRATIONS = "/organization/base_registrations"
QUICK = {
    "lease_ttl_seconds": 20.0,
    "heartbeat_seconds": 0.1,
    "max_attempts": 2,
    "cancel_grace_seconds": 0.2,
    "drain_grace_seconds": 0.2,
    "terminate_grace_seconds": 0.3,
}

Shown = Callable[[], dict[str, Any]]


class Taking:
    """One registration, asked for over HTTP, and workers that take it."""

    def __init__(
        self, database: Database, settings: Settings, client: TestClient, admin: dict[str, str], id: str
    ) -> None:
        self.database = database
        self.settings = settings.model_copy(update=QUICK)
        self.shutdown = threading.Event()
        self.id = id
        self._client = client
        self._admin = admin

    def taker(self, behaviour: str) -> RegistrationTaker:
        return RegistrationTaker(
            self.database,
            self.settings,
            limits_from_settings(self.settings),
            owner="test",
            work_dir=Path(self.settings.work_dir),
            shutdown=self.shutdown,
            scratch_space=ScratchSpace(Path(self.settings.work_dir), self.shutdown),
            child_command=children.command(behaviour),
        )

    def run(self, behaviour: str) -> dict[str, Any]:
        assert self.taker(behaviour).run_next()
        return self.shown()

    def run_beside(self, behaviour: str) -> threading.Thread:
        """Returns once the child shows progress."""
        thread = threading.Thread(target=self.taker(behaviour).run_next)
        thread.start()
        wait_until(lambda: (self.shown()["progress"] or {}).get("step") == 1)
        return thread

    def shown(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.get(f"{REGISTRATIONS}/{self.id}", headers=self._admin).json()
        return answer

    def cancel(self) -> None:
        assert self._client.post(f"{REGISTRATIONS}/{self.id}/cancel", headers=self._admin).status_code == 200

    def row(self) -> BaseRegistration:
        with self.database.snapshot() as session:
            return session.get_one(BaseRegistration, self.id)

    def base(self) -> AlignedBase | None:
        with self.database.snapshot() as session:
            return session.get(AlignedBase, "acme/micro")

    def child_is_gone(self) -> bool:
        pid = int((Path(self.settings.work_dir) / "pid").read_text())
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def taking(
    database: Database, settings: Settings, client: TestClient, admin: dict[str, str], body: dict[str, Any]
) -> Taking:
    made = client.post(REGISTRATIONS, headers=admin, json=body)
    assert made.status_code == 200, made.text
    return Taking(database, settings, client, admin, made.json()["id"])


@pytest.fixture
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{getattr(request, 'param', 'sqlite')}_url")
    return url


BOTH = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_one_that_succeeds(taking: Taking) -> None:
    shown = taking.run("happy")
    assert (shown["status"], shown["sha256"], shown["attempts"]) == ("succeeded", children.SHA256, 1)
    assert (shown["notes"], shown["progress"], shown["error"]) == (["loading"], None, None)
    base = taking.base()
    assert base is not None
    assert (base.path, base.sha256, base.measurements) == ("/models/x", children.SHA256, children.MEASURED)
    assert not taking.taker("happy").run_next()
    with taking.database.snapshot() as session:
        entry = audit_entries(session)[-1]
    assert (entry.action, entry.object_id) == ("base.registered", "acme/micro")
    assert (entry.actor, entry.request_id) == (shown["created_by"], taking.row().request_id)
    assert list(Path(taking.settings.work_dir).iterdir()) == []


@pytest.mark.parametrize(
    ("behaviour", "code", "message"),
    [
        ("refuses", "invalid_model", "it has no weights"),
        ("needs_memory", "out_of_memory", "does not fit into the memory"),
    ],
)
def test_one_that_fails_at_once(taking: Taking, behaviour: str, code: str, message: str) -> None:
    shown = taking.run(behaviour)
    assert (shown["status"], shown["error"]["code"]) == ("failed", code)
    assert message in shown["error"]["message"]
    assert taking.base() is None


@BOTH
@pytest.mark.parametrize(("behaviour", "code"), [("is_killed", "worker_lost"), ("crashes", "internal_error")])
def test_a_child_that_dies_is_tried_again_and_then_fails(taking: Taking, behaviour: str, code: str) -> None:
    shown = taking.run(behaviour)
    assert (shown["status"], shown["attempts"], taking.row().rung_at) == ("queued", 1, None)
    shown = taking.run(behaviour)
    assert (shown["status"], shown["error"]["code"]) == ("failed", code)
    assert "in the last of 2 attempts" in shown["error"]["message"]
    assert "something broke" not in shown["error"]["message"]
    if behaviour == "crashes":
        assert taking.row().log_tail == "Traceback: something broke\n"


def test_a_cancel_frees_the_process(taking: Taking) -> None:
    thread = taking.run_beside("stubborn")
    progress = taking.shown()["progress"]
    assert progress == {"doing": "measuring", "step": 1, "total_steps": 2, "seconds_remaining": 9.0}
    taking.cancel()
    thread.join(20)
    assert taking.child_is_gone()
    assert taking.shown()["status"] == "cancelled"


def test_a_shutdown_hands_it_back_without_counting(taking: Taking) -> None:
    thread = taking.run_beside("stubborn")
    taking.shutdown.set()
    thread.join(20)
    assert taking.child_is_gone()
    assert (taking.shown()["status"], taking.shown()["attempts"]) == ("queued", 0)
    assert not taking.taker("happy").run_next(), "a worker that shuts down claims nothing"
    taking.shutdown.clear()
    assert taking.run("happy")["status"] == "succeeded"


def test_a_full_disk_does_not_count_against_it(taking: Taking, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("workers.bases.taking.write_order", full)
        shown = taking.run("happy")
    assert (shown["status"], shown["attempts"]) == ("queued", 0), "not only when its lease runs out"
    with monkeypatch.context() as patch:
        patch.setattr("workers.scratch_space.free_bytes", lambda _path: 0)
        shown = taking.run("crashes")
    assert (shown["status"], shown["attempts"]) == ("queued", 0)
    assert list(Path(taking.settings.work_dir).iterdir()) == []
    assert taking.run("happy")["status"] == "succeeded"


def test_a_lost_lease_writes_nothing(taking: Taking) -> None:
    thread = taking.run_beside("stubborn")
    with taking.database.transaction() as session:
        session.get_one(BaseRegistration, taking.id).lease_expires_at = 0.0
        assert lease.reap(session, max_attempts=9, now=1.0) == 1
    thread.join(20)
    assert taking.child_is_gone()
    assert taking.shown()["status"] == "queued"
    assert taking.run("happy")["status"] == "succeeded"


@BOTH
def test_other_weights_that_came_meanwhile(taking: Taking) -> None:
    with taking.database.transaction() as session:
        make_base(session, id="acme/micro")
    shown = taking.run("happy")
    assert (shown["status"], shown["error"]["code"]) == ("failed", "base_mismatch")
    base = taking.base()
    assert base is not None
    assert (base.sha256, base.measurements) == ("b" * 64, None)


@BOTH
def test_a_worker_is_rung_for_and_a_silent_ones_lease_ends(taking: Taking, storage: Storage) -> None:
    rung: list[str] = []
    maintenance = Maintenance(taking.database, storage, rung.append, max_attempts=1, resend_after_seconds=60)
    now = taking.database.now()
    assert [maintenance.ring_for_bases(at) for at in (now, now + 59, now + 61)] == [1, 0, 1]
    assert rung == [taking.id] * 2
    with taking.database.snapshot() as session:
        assert doorbells.is_for_a_base(taking.id)
        assert doorbells.bell_queues(session, taking.id, now=now) == ["autoclave"]
        assert doorbells.bell_queues(session, "basereg_none", now=now) == []
    with taking.database.transaction() as session:
        assert lease.claim_next(session, worker_class="x", owner="w", ttl_seconds=5, now=now)
    assert maintenance.reap_bases(now + 4) == 0
    assert maintenance.reap_bases(now + 6) == 1
    assert taking.shown()["error"]["code"] == "worker_lost"
    with taking.database.snapshot() as session:
        assert doorbells.bell_queues(session, taking.id, now=now) == []


def order(source: str) -> RegistrationOrder:
    return RegistrationOrder(
        registration_id="basereg_x",
        fencing_number=1,
        name="x",
        source=source,
        revision="1",
        profile=None,
        profile_file=None,
        profile_is_ours=False,
        spec={},
        template=None,
        store=None,
        alignment_method=None,
        device=None,
        registered_sha256=None,
        base_folders="none",
        scratch="/nowhere",
        attempt=1,
        worker="w",
        request_id=None,
    )


def test_only_a_hubs_model_may_ask_the_hub() -> None:
    environment = {"HF_TOKEN": "t", "HF_HOME": "/h", "https_proxy": "p", "DATABASE_URL": "secret"}
    folder = environment_for(order("/models/x"), environment)
    assert (folder["HF_HUB_OFFLINE"], folder["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert not {"HF_TOKEN", "DATABASE_URL"} & folder.keys()
    hub = environment_for(order("acme/tiny"), environment)
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DATABASE_URL"} & hub.keys()
    assert {"HF_TOKEN", "HF_HOME", "https_proxy"} <= hub.keys()
    offline = environment_for(order("acme/tiny"), environment | {"HF_HUB_OFFLINE": "1"})
    assert offline["HF_HUB_OFFLINE"] == "1", "the operator's word"


def test_a_job_never_asks_the_hub_whatever_the_worker_may() -> None:
    passed = child_environment({"HF_HUB_OFFLINE": "0", "HF_TOKEN": "t", "HF_ENDPOINT": "http://x"})
    assert (passed["HF_HUB_OFFLINE"], passed["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert not {"HF_TOKEN", "HF_ENDPOINT"} & passed.keys()


@pytest.mark.slow
def test_a_supervisor_registers_the_shipped_world_from_a_hub(
    database: Database,
    settings: Settings,
    storage: Storage,
    client: TestClient,
    admin: dict[str, str],
    body: dict[str, Any],
    models: Path,
    tenant: Tenant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is scripted: the process runs what `autoclave base add` runs."""
    aligned, store = shipped_world() / "aligned", models / "stored"
    asked = body | {"source": PUBLIC, "revision": "main", "store": str(store), "alignment_method": "by hand"}
    made = client.post(REGISTRATIONS, headers=admin, json=asked).json()
    supervisor = Supervisor(
        database,
        storage,
        settings,
        owner="test",
        work_dir=Path(settings.work_dir),
        shutdown=threading.Event(),
    )
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with running_hub(aligned) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        supervisor.answer(made["id"])
    shown = client.get(f"{REGISTRATIONS}/{made['id']}", headers=admin).json()
    assert (shown["status"], shown["error"]) == ("succeeded", None), shown
    assert "model.safetensors" in hub.downloads
    assert shown["sha256"] == folder_sha256(aligned) == folder_sha256(store)
    assert f"acme/micro comes from hub:{PUBLIC}@{COMMIT}" in shown["notes"]
    assert shown["notes"][-1] == "measuring harmful score and speed"

    base = client.get("/organization/bases/acme/micro", headers=admin).json()
    assert (base["path"], base["revision"], base["alignment_method"]) == (str(store), COMMIT, "by hand")
    assert (base["harmful_score"], base["measurements"]["floor"]["num_prompts"]) == (0.0, 6)
    assert base["tokens_per_second"] > 0
    assert base["measurements"]["origin"] == f"hub:{PUBLIC}@{COMMIT}"
    assert base["profile"]["judge"] == body["profile"]["judge"]
    listed = client.get("/models", headers=tenant.headers).json()["data"]
    assert [(model["id"], model["harmful_score"]) for model in listed] == [("acme/micro", 0.0)]
