"""Faults of what the service stands on: broker, database, storage, disk."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]
import redis

from chaos.fleet import Fleet, limit_files
from chaos.schedule import Fault
from chaos.servers import Broker
from chaos.watcher import Watcher
from service.scheduling.workers import DEFAULT_QUEUE
from tests.s3 import DROP, SLOW_DOWN
from tests.s3 import Fault as S3Fault
from workers.celery_app import make_celery, ring

if TYPE_CHECKING:
    from chaos.faults import Done

_LIMITED_BYTES = 4096
_UNLIMITED = psutil.RLIM_INFINITY if hasattr(psutil, "RLIM_INFINITY") else -1
# What a store does on a bad day. `late`: it did what it was asked, and the answer was lost.
_BAD_DAY = (
    SLOW_DOWN,
    S3Fault(500),
    DROP,
    S3Fault(drop=True, late=True),
    S3Fault(503, "SlowDown", late=True),
    S3Fault(seconds=0.7),
    S3Fault(body_bytes=100),
)


def inject(fault: Fault, fleet: Fleet, watcher: Watcher, done: Done) -> None:
    match fault.kind:
        case "restart broker" | "wipe broker":
            wipe = fault.kind == "wipe broker"
            fleet.broker.kill(wipe=wipe)
            time.sleep(fault.seconds)
            fleet.broker.start()
            done.what = f"down for {fault.seconds:g} s"
        case "restart database" | "crash database":
            fleet.postgres.stop(crash=fault.kind == "crash database")
            time.sleep(fault.seconds)
            fleet.postgres.start()
            done.what = f"down for {fault.seconds:g} s"
        case "lose messages":
            done.what = f"{lose_messages(fleet.broker, seconds=fault.seconds)} messages taken away"
        case "duplicate messages":
            done.what = duplicate_messages(fleet.broker, watcher, seed=fault.target)
        case "storage errors":
            rng = random.Random(fault.target)  # noqa: S311 - faults, no secret
            _storage(fleet, fault, lambda: rng.choice(_BAD_DAY) if rng.random() < 0.3 else None, done)
        case "storage outage":
            _storage(fleet, fault, lambda: SLOW_DOWN if fault.target % 2 else DROP, done)
        case "slow storage":
            _storage(fleet, fault, lambda: S3Fault(seconds=0.5), done)
        case "full disk":
            _full_disk(fleet, fault, done)
        case _:
            raise AssertionError(fault.kind)


def _storage(fleet: Fleet, fault: Fault, draw: Callable[[], S3Fault | None], done: Done) -> None:
    proxy = fleet.store.proxy
    before = len(proxy.requests)
    proxy.rule = lambda _method, _path: draw()
    time.sleep(fault.seconds)
    proxy.heal()
    done.what = f"{fault.seconds:g} s, {len(proxy.requests) - before} requests"


def lose_messages(broker: Broker, *, seconds: float) -> int:
    """Take messages from the queue before a worker does; how many."""
    lost, deadline = 0, time.monotonic() + seconds
    with broker.connect() as client, suppress(redis.RedisError):
        while time.monotonic() < deadline:
            lost += client.blpop([DEFAULT_QUEUE], timeout=1) is not None
    return lost


def duplicate_messages(broker: Broker, watcher: Watcher, *, seed: int) -> str:
    """What waits in the queue once more, and bells for jobs in every state, as a broker redelivers them."""
    rng = random.Random(seed)  # noqa: S311 - faults, no secret
    waiting: list[bytes] = []
    with broker.connect() as client, suppress(redis.RedisError):
        waiting = client.lrange(DEFAULT_QUEUE, 0, -1)
        if waiting:
            client.rpush(DEFAULT_QUEUE, *waiting)
    job_ids = list(watcher.jobs())
    app = make_celery(broker.url)
    try:
        chosen = rng.choices(job_ids, k=min(12, len(job_ids))) if job_ids else []
        for job_id in chosen:
            ring(app, job_id)
    finally:
        app.close()
    return f"{len(waiting)} in the queue, {len(chosen)} of any job"


def _full_disk(fleet: Fleet, fault: Fault, done: Done) -> None:
    number = fault.target % fleet.num_workers
    disk, worker = fleet.disks[number], fleet.workers()[number]
    if disk.is_mounted:
        disk.fill()
        time.sleep(fault.seconds)
        disk.free()
        done.what = f"scratch of {worker.name} full for {fault.seconds:g} s (ENOSPC)"
        return
    deadline = time.monotonic() + fault.seconds
    processes: list[psutil.Process] = []
    while time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            processes = [psutil.Process(worker.pid), *worker.children()]
        for process in processes:
            limit_files(process, _LIMITED_BYTES)
        time.sleep(0.2)
    for process in processes:
        limit_files(process, _UNLIMITED)
    done.what = f"no file of {worker.name} above {_LIMITED_BYTES} bytes for {fault.seconds:g} s (EFBIG)"
