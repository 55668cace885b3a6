from __future__ import annotations

import itertools
import threading
import time

from service.dashboard.remembered import SHARE, Remembered


def test_it_is_made_once_a_moment() -> None:
    numbers = itertools.count()
    remembered = Remembered(lambda: next(numbers), seconds=60)
    assert remembered.fresh() is None
    assert [remembered.get() for _ in range(3)] == [0, 0, 0]
    assert remembered.fresh() == 0
    assert remembered.renew() == 1
    assert remembered.get() == 1


def test_what_takes_long_is_remembered_longer() -> None:
    numbers = itertools.count()

    def make() -> int:
        time.sleep(0.05)
        return next(numbers)

    remembered = Remembered(make, seconds=0.0)
    began = time.monotonic()
    while remembered.get() == 0:
        time.sleep(0.01)
    assert time.monotonic() - began >= 0.05 / SHARE


def test_many_at_once_make_it_once() -> None:
    numbers = itertools.count()

    def make() -> int:
        time.sleep(0.05)
        return next(numbers)

    remembered = Remembered(make, seconds=60)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(remembered.get())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0] * 8
