"""Users: they upload, create jobs with an Idempotency-Key, and try again until they are answered.

They know nothing of the service but its API.
"""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx

from chaos.fleet import Fleet, Tenant
from chaos.watcher import Watcher
from chaos.world import LENIENT, STRICT, training_file

STRICT_SHARE = 0.08
REPEAT_SHARE = 0.2
"""Of requests that are sent once more although they were answered."""
JOBS_PER_FILE = 6
RETRY_SECONDS = 0.3


class GaveUpError(Exception):
    """The users' patience is over."""


class User:
    """Of one project; safe to share between threads. Every method tries again while `over` is not set."""

    def __init__(self, url: str, tenant: Tenant, over: threading.Event) -> None:
        self.tenant = tenant
        self._over = over
        self.num_retries = 0
        self._client = httpx.Client(
            base_url=f"{url}/v1", headers={"Authorization": f"Bearer {tenant.key}"}, timeout=20
        )

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Once. Raises httpx.TransportError."""
        return self._client.request(method, path, **options)

    def insist(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Until the server answers something else than that it cannot. Raises GaveUpError."""
        while not self._over.is_set():
            try:
                answer = self.ask(method, path, **options)
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            except httpx.TransportError:
                pass
            self.num_retries += 1
            self._over.wait(RETRY_SECONDS)
        raise GaveUpError(f"{method} {path}")

    def upload(self, content: bytes, *, key: str) -> str:
        files = {"file": ("train.jsonl", content, "application/jsonl")}
        answer = self.insist(
            "POST", "/files", files=files, data={"purpose": "fine-tune"}, headers={"Idempotency-Key": key}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def close(self) -> None:
        self._client.close()


class Clients:
    """A context manager: `num_threads` threads that create `num_jobs` jobs, never more than `most_open` at
    once that have not ended. `acknowledged` maps each key to the ids that were answered."""

    def __init__(
        self,
        fleet: Fleet,
        watcher: Watcher,
        *,
        num_jobs: int,
        most_open: int,
        seed: int,
        num_threads: int = 3,
        on_error: Callable[[str], None],
    ) -> None:
        self.acknowledged: dict[str, set[str]] = defaultdict(set)
        self.over = threading.Event()
        self.users = {tenant.project_id: User(fleet.url, tenant, self.over) for tenant in fleet.tenants}
        self._fleet = fleet
        self._watcher = watcher
        self._num_jobs = num_jobs
        self._most_open = most_open
        self._seed = seed
        self._next = 0
        self._lock = threading.Lock()
        self._on_error = on_error
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"client-{number}")
            for number in range(num_threads)
        ]

    @property
    def num_retries(self) -> int:
        return sum(user.num_retries for user in self.users.values())

    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self, number: int) -> None:
        user = list(self.users.values())[number % len(self.users)]
        rng = random.Random(f"{self._seed} client {number}")  # noqa: S311 - which base, no secret
        file_id, made = "", 0
        try:
            while (job := self._take()) is not None:
                if made % JOBS_PER_FILE == 0:
                    content = training_file(self._fleet.world, job)
                    file_id = user.upload(content, key=f"file {self._seed} {number} {made}")
                made += 1
                self._create(user, rng, file_id, job)
        except GaveUpError:
            return
        except Exception as error:
            self._on_error(f"client {number}: {type(error).__name__}: {error}")

    def _take(self) -> int | None:
        while not self.over.is_set():
            with self._lock:
                if self._next >= self._num_jobs:
                    return None
                unseen = self._next - len(self._watcher.jobs())
                if self._watcher.num_open() + unseen < self._most_open:
                    self._next += 1
                    return self._next - 1
            time.sleep(0.1)
        return None

    def _create(self, user: User, rng: random.Random, file_id: str, job: int) -> None:
        key = f"job {self._seed} {job}"
        body = {
            "model": STRICT if rng.random() < STRICT_SHARE else LENIENT,
            "training_file": file_id,
            "seed": job,
            "suffix": "chaos",
            "metadata": {"key": key},
        }
        for _ in range(2 if rng.random() < REPEAT_SHARE else 1):
            answer = user.insist("POST", "/fine_tuning/jobs", json=body, headers={"Idempotency-Key": key})
            assert answer.status_code == 200, answer.text
            self.acknowledged[key].add(answer.json()["id"])

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(60)
        for user in self.users.values():
            user.close()
