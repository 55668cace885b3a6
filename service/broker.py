"""How the broker is, for operators."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from service.rates.window import WindowStorage
from service.scheduling.workers import DEFAULT_QUEUE


@dataclass(frozen=True)
class BrokerLook:
    milliseconds: float
    """One round trip."""
    num_waiting: int
    """Doorbells that no worker has heard yet."""
    num_unacknowledged: int
    """Handed to a worker that has not said yet that it got them."""
    memory_bytes: int


def _queues(client: Any) -> list[Any]:
    """The default one, and those of kinds of workers (`service.scheduling.workers.Kind`)."""
    return [DEFAULT_QUEUE, *client.scan_iter(match=f"{DEFAULT_QUEUE}.*", _type="list")]


def look(broker_url: str) -> BrokerLook:
    """Raises redis.RedisError, OSError, or ValueError for a broker that is none."""
    storage = WindowStorage(broker_url)
    try:
        client = storage.storage
        client.ping()  # the first one also connects
        started = time.perf_counter()
        client.ping()
        milliseconds = 1000 * (time.perf_counter() - started)
        return BrokerLook(
            milliseconds,
            sum(int(client.llen(name)) for name in _queues(client)),
            int(client.hlen("unacked")),
            int(client.info("memory")["used_memory"]),
        )
    finally:
        storage.close()


class Waiting:
    """How many doorbells wait, asked over one connection that is made with the first question."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url
        self._storage: WindowStorage | None = None

    def count(self, queue: str) -> int:
        """Raises redis.RedisError, OSError, or ValueError for a broker that is none."""
        if self._storage is None:
            self._storage = WindowStorage(self._broker_url)
        return int(self._storage.storage.llen(queue))
