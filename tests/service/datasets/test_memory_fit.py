"""Whether a job fits on the workers there are: the right ones are counted, and nobody is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.datasets.memory_fit import memory_fit
from service.datasets.schemas import Memory, MemoryByDevice
from service.db import Database
from service.fleet.presence import see
from service.fleet.states import WorkerState
from service.fleet.usable import AlikeWorkers, UsableWorkers, usable_workers
from service.scheduling import lanes
from tests.builders import Tenant
from tests.service.datasets.conftest import lines
from tests.service.fleet.test_repository import NOW, sighting

GB = 10**9


def memory(cpu: int, cuda: int) -> MemoryByDevice:
    def of(total: int) -> Memory:
        return Memory(base=total, adapter=0, optimizer=0, activations=0, defence=0, total=total)

    return MemoryByDevice(cpu=of(cpu), cuda=of(cuda))


CARD = AlikeWorkers("cuda", 80 * GB, 0, 3)
SMALL_CARD = AlikeWorkers("cuda", 24 * GB, 0, 2)
MACHINE = AlikeWorkers("cpu", 64 * GB, 0, 1)
SILENT = AlikeWorkers("cuda", None, 0, 1)


@pytest.mark.parametrize(
    ("workers", "cpu", "cuda", "expected"),
    [
        ([CARD, SMALL_CARD, MACHINE], 60, 30, (True, "fits", 6, 4)),
        ([CARD, SMALL_CARD, MACHINE], 64, 80, (True, "fits", 6, 4)),
        ([CARD, SMALL_CARD, MACHINE], 65, 81, (False, "too_large", 6, 0)),
        ([SMALL_CARD, SILENT], 60, 30, (None, "unknown_size", 3, 0)),
        ([CARD, SILENT], 60, 30, (True, "fits", 4, 3)),
        ([], 60, 30, (None, "no_worker", 0, 0)),
    ],
)
def test_the_verdict(
    workers: list[AlikeWorkers], cpu: int, cuda: int, expected: tuple[bool | None, str, int, int]
) -> None:
    found = memory_fit(UsableWorkers(workers, False), memory(cpu * GB, cuda * GB), None, batch_size=4)
    assert (found.fits, found.reason, found.num_workers, found.num_fitting) == expected
    for group in found.workers:
        needed = cuda if group.device == "cuda" else cpu
        assert group.needed_bytes == needed * GB
        assert group.fits == (None if group.memory_bytes is None else needed * GB <= group.memory_bytes)


def test_too_large_names_the_worker_that_comes_closest() -> None:
    workers = UsableWorkers([SMALL_CARD, MACHINE], False)
    text = memory_fit(workers, memory(100 * 2**30, 1000 * 2**30), None, batch_size=4).message
    assert "needs about 100 GiB" in text
    assert "best suited worker has 59.6 GiB" in text


def test_without_an_estimate_workers_are_counted_all_the_same() -> None:
    found = memory_fit(UsableWorkers([CARD], False), None, "its files are elsewhere.", batch_size=4)
    assert (found.fits, found.reason, found.num_workers) == (None, "no_estimate", 3)
    assert found.message.endswith("is not known: its files are elsewhere.")
    (group,) = found.workers
    assert (group.needed_bytes, group.fits) == (None, None)


def test_processes_share_a_machine_and_not_a_card() -> None:
    together = [AlikeWorkers(device, 64 * GB, 4, 1) for device in ("cpu", "cuda")]

    def needed(batch_size: int) -> list[int | None]:
        found = memory_fit(
            UsableWorkers(together, False), memory(20 * GB, 20 * GB), None, batch_size=batch_size
        )
        return [group.needed_bytes for group in found.workers]

    assert needed(8) == [80 * GB, 20 * GB]
    assert needed(3) == [60 * GB, 20 * GB], "no more processes than a step has conversations"


def test_machines_of_a_kind_are_one_group() -> None:
    alike = [AlikeWorkers("cpu", 67_372_036_096 + 4096 * n, 0, 1) for n in range(3)]
    found = memory_fit(UsableWorkers(alike, False), memory(GB, GB), None, batch_size=1)
    (group,) = found.workers
    assert (group.num_workers, group.memory_bytes) == (3, 67_400_000_000)


def test_connected_are_those_that_take_jobs(database: Database, tenant: Tenant) -> None:
    def there(name: str, **overrides: Any) -> None:
        values = {"worker_class": "default", "job_memory_bytes": 80 * GB, "job_processes": 0}
        with database.transaction() as session:
            see(session, sighting(id=name, device_kind="cuda", **(values | overrides)))

    there("a")
    there("b", state=WorkerState.BUSY)
    there("stopping", state=WorkerState.STOPPING)
    there("gone", state=WorkerState.GONE)
    there("silent", heartbeat_at=NOW - 121)
    there("older", worker_class=None, job_memory_bytes=None, job_processes=None)
    there("c", worker_class="h100", job_memory_bytes=90 * GB, job_processes=2)

    def usable() -> tuple[set[AlikeWorkers], bool]:
        with database.snapshot() as session:
            found = usable_workers(session, tenant.project_id, now=NOW)
        return set(found.alike), found.are_others

    ours = AlikeWorkers("cuda", 90 * GB, 2, 1)
    everyone = {AlikeWorkers("cuda", 80 * GB, 0, 2), AlikeWorkers("cuda", None, 0, 1), ours}
    assert usable() == (everyone, False)
    for worker_class, expected in (("h100", {ours}), ("b200", set())):
        with database.transaction() as session:
            lanes.locked(session, tenant.project_id).worker_class = worker_class
        assert usable() == (expected, True)
    fit = memory_fit(UsableWorkers([], True), memory(1, 1), None, batch_size=1)
    assert (fit.fits, fit.reason) == (None, "worker_class")


def test_an_estimate_says_whether_it_fits_and_names_nobody(
    post: Any, store: Any, base: str, database: Database
) -> None:
    body = {"model": base, "training_file": store(lines(*"abcdefghijkl"))}
    assert post("estimate", **body)["memory_fit"]["reason"] == "no_worker"
    for name, num_bytes in (("secret-host:1:a", 10**6), ("secret-host:2:b", 64 * GB)):
        values = {"device_name": "secret card", "worker_class": "secret", "job_memory_bytes": num_bytes}
        with database.transaction() as session:
            see(session, sighting(id=name, host="secret-host", heartbeat_at=database.now(), **values))
    answer = post("estimate", **body)
    fit, needed = answer["memory_fit"], answer["memory_bytes"]["cpu"]["total"]
    assert fit == {
        "fits": True,
        "reason": "fits",
        "message": "Training fits on 1 of the 2 workers that this project may use now.",
        "num_workers": 2,
        "num_fitting": 1,
        "workers": [
            {"device": "cpu", "memory_bytes": n, "needed_bytes": needed, "num_workers": 1, "fits": fits}
            for n, fits in ((10**6, False), (64 * GB, True))
        ],
    }
    assert "secret" not in json.dumps(answer)
