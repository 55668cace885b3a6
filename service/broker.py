"""How the broker is, for operators."""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.outbox import QUEUE_NAME
from service.rates.window import WindowStorage


@dataclass(frozen=True)
class BrokerLook:
    milliseconds: float
    """One round trip."""
    num_waiting: int
    """Doorbells that no worker has heard yet."""
    num_unacknowledged: int
    """Handed to a worker that has not said yet that it got them."""
    memory_bytes: int


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
            int(client.llen(QUEUE_NAME)),
            int(client.hlen("unacked")),
            int(client.info("memory")["used_memory"]),
        )
    finally:
        storage.close()
