"""Watches one job to its end: asks for the job now and then, takes its events as they come, and tells a
display what is new."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers.jobs_cli.client import Client, path_of
from workers.jobs_cli.errors import UnreachableError
from workers.jobs_cli.following import Event, Follower
from workers.jobs_cli.patience import Patience

EXIT_STATUS = {"succeeded": 0, "failed": 1, "cancelled": 2}
"""Of a job that has ended, by its status. A job with any other status has not."""
LAST_EVENTS_SECONDS = 10.0
MAX_LOSSES = 10_000


@dataclass
class Watched:
    """What is known of a job."""

    job: dict[str, Any]
    losses: list[float | None] = field(default_factory=list)
    """Of training, in the order of the steps; a resumed attempt does not count twice."""
    messages: list[Event] = field(default_factory=list)
    """Events that are no figures, oldest first."""
    _steps: dict[int, float | None] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        return self.job["status"] in EXIT_STATUS

    def add(self, event: Event) -> None:
        if event.get("type") != "metrics":
            self.messages.append(event)
            return
        data = event.get("data") or {}
        if isinstance(data.get("step"), int):
            self._steps[data["step"]] = data.get("train_loss")
            self.losses = [self._steps[step] for step in sorted(self._steps)][-MAX_LOSSES:]


class Display(Protocol):
    def show(self, watched: Watched, news: list[Event], /) -> None:
        """Something of the job may have changed."""

    def trouble(self, reason: str) -> None: ...

    def back(self) -> None: ...


def watch(
    client: Client,
    job_id: str,
    display: Display,
    *,
    interval_seconds: float,
    patience_seconds: float,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Any]:
    """The job as it was when it had ended, after all its events were shown. Raises RefusedError,
    UnreachableError (also at once, if the server was never there)."""
    watched = Watched(client.get(path_of(job_id)))
    patience = Patience(patience_seconds, on_trouble=display.trouble, on_return=display.back, sleep=sleep)
    with Follower(client, job_id, patience_seconds=patience_seconds) as follower:
        last_words_until: float | None = None
        while True:
            news = follower.news()
            for event in news:
                watched.add(event)
            display.show(watched, news)
            if watched.has_ended:
                if last_words_until is None:
                    last_words_until = time.monotonic() + LAST_EVENTS_SECONDS
                if follower.ended or time.monotonic() > last_words_until:
                    return watched.job
                sleep(0.05)
                continue
            sleep(interval_seconds)
            try:
                watched.job = client.get(path_of(job_id))
                patience.answered()
            except UnreachableError as error:
                patience.wait(error)
