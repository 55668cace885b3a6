"""How long a command waits for a server that is away, and how often it asks."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.jobs_cli.errors import UnreachableError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0


@dataclass
class Patience:
    """Of one thread. `lasts_seconds` is how long nothing may come before `wait` raises."""

    lasts_seconds: float
    on_trouble: Callable[[str], None] = lambda _: None
    """Told once when the server is away."""
    on_return: Callable[[], None] = lambda: None
    """Told once when it is back."""
    sleep: Callable[[float], object] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    _pause_seconds: float = field(default=FIRST_PAUSE_SECONDS, init=False)

    @property
    def is_waiting(self) -> bool:
        return self._since is not None

    def answered(self) -> None:
        if self._since is not None:
            self.on_return()
        self._since, self._pause_seconds = None, FIRST_PAUSE_SECONDS

    def wait(self, error: UnreachableError) -> None:
        """Sleeps: half a second, then longer, a little by chance, so that not everybody comes back at once.
        Raises `error` when patience is over."""
        now = self.clock()
        if self._since is None:
            self._since = now
            if self.lasts_seconds > 0:
                self.on_trouble(str(error))
        left = self._since + self.lasts_seconds - now
        if left <= 0:
            raise error
        pause = max(self._pause_seconds, error.retry_after_seconds or 0.0)
        self.sleep(min(pause * random.uniform(0.8, 1.2), left))  # noqa: S311  no secret
        self._pause_seconds = min(self._pause_seconds * 1.6, LONGEST_PAUSE_SECONDS)
