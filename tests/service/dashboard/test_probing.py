from __future__ import annotations

import threading

from service.dashboard.probing import Probes


def test_an_answer() -> None:
    probed = Probes().start("x", lambda: 5)()
    assert (probed.value, probed.problem) == (5, None)
    assert probed.milliseconds is not None


def test_a_failure_is_named_without_its_words() -> None:
    def ask() -> None:
        raise OSError("redis://:password@host")

    probed = Probes().start("x", ask)()
    assert probed.problem == "fails (OSError)"


def test_what_hangs_is_waited_for_once() -> None:
    over, asked = threading.Event(), []

    def ask() -> None:
        asked.append(1)
        over.wait(30)

    probes = Probes(wait_seconds=0.05)
    waits = [probes.start("x", ask) for _ in range(3)]
    assert {wait().problem for wait in waits} == {"no answer within 0.05 seconds"}
    assert len(asked) == 1
    over.set()
