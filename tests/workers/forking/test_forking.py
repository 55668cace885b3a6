"""Forked processes in place of fresh ones: as separate, as truthful about their end, and as surely gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import structlog

from tests.workers.forking.bench import Bench, ended, said, wait_until
from tests.workers.test_supervisor import gone
from workers.forking.resident import ResidentBase

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forking is for Linux")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("HUNTER", "hunter2")
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    bench = Bench(tmp_path)
    yield bench
    for resident in bench.residents:
        pid = resident.pid
        resident.end()
        assert pid is None or gone([pid])


def test_a_forked_process_is_as_a_fresh_one(bench: Bench) -> None:
    resident = bench.resident()
    found = []
    for server in (None, resident, resident):
        with bench.child(server, do="facts") as child:
            words = said(child)
            assert ended(child) == 0
            assert words.pop("pid") == child.pid
            found.append((child.base, child.pid, words))
            with pytest.raises(AssertionError):
                said(child)  # nobody holds its pipe open
    (_, _, fresh), (first, first_pid, loaded), (second, second_pid, kept) = found
    assert (first, second) == ("loaded", "resident")
    assert loaded == kept == fresh
    assert fresh["leads"]
    assert fresh["environment"]["HUNTER"] == "hunter2"
    assert fresh["files"] == ["pipe"], "neither the server's socket nor anything of another process"
    assert len(bench.loads()) == 1
    server_pid = bench.loads()[0]
    assert len({first_pid, second_pid, server_pid}) == 3
    assert "HUNTER" not in psutil.Process(server_pid).environ()
    log = (bench.folder / "child.log").read_text().splitlines()
    assert log[1:] == [f"done by {first_pid}", f"done by {second_pid}"]


def test_how_it_ended_is_told_truthfully(bench: Bench) -> None:
    resident = bench.resident()
    for order, exit_code in (({"do": "exit", "status": 42}, 42), ({"do": "die"}, -9), ({"do": "facts"}, 0)):
        with bench.child(resident, **order) as child:
            assert ended(child) == exit_code
    assert child.base == "resident"
    assert len(bench.loads()) == 1


def test_killing_a_process_leaves_the_server_usable(bench: Bench) -> None:
    resident = bench.resident()
    with bench.child(resident, do="hang") as child:
        words = said(child)
        child.terminate()
        time.sleep(0.1)
        assert child.exit_code() is None, "it is deaf"
        child.kill()
        assert ended(child) == -signal.SIGKILL
    assert gone([words["pid"], words["other"]])
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
        assert child.base == "resident"


def test_leaving_the_block_ends_it(bench: Bench) -> None:
    with bench.child(bench.resident(), do="hang") as child:
        words = said(child)
    assert gone([words["pid"], words["other"]])


def test_a_server_that_is_killed_takes_its_process_along(bench: Bench) -> None:
    resident = bench.resident()
    with bench.child(resident, do="hang") as child:
        words = said(child)
        os.kill(bench.loads()[0], signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
    assert gone([words["pid"]])
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
        assert child.base == "loaded"
    assert len(bench.loads()) == 2


@pytest.mark.parametrize("how", ["dies", "refuses", "never", "unfit"])
def test_a_fresh_process_takes_the_place_of_one_that_cannot_be_forked(bench: Bench, how: str) -> None:
    resident = bench.resident(how)
    for _ in range(4):
        with structlog.testing.capture_logs() as log, bench.child(resident, do="facts") as child:
            words = said(child)
            assert ended(child) == 0
            assert (words["pid"], child.base, words["files"]) == (child.pid, "fresh", ["pipe"])
    assert len(bench.loads()) == (3 if how in ("dies", "refuses") else 1), "it is not tried for ever"
    assert log == []


def test_that_there_is_no_resident_base_is_logged(bench: Bench) -> None:
    resident = bench.resident("refuses")
    with structlog.testing.capture_logs() as log, bench.child(resident, do="facts") as child:
        assert ended(child) == 0
    assert {"reason": "no", "tries_again": True}.items() <= log[-1].items()


@pytest.mark.parametrize("command", [["/nonexistent"], ["false"]])
def test_a_server_that_does_not_start(bench: Bench, command: list[str]) -> None:
    resident = ResidentBase(lambda _: command, dict, log_path=bench.folder / "resident.log")
    bench.residents.append(resident)
    with bench.child(resident, do="facts") as child:
        assert said(child)["leads"]
        assert ended(child) == 0
        assert child.base == "fresh"


def test_a_base_that_is_being_loaded_can_be_stopped(bench: Bench) -> None:
    with bench.child(bench.resident("slow"), do="facts") as child:
        wait_until(bench.loads)
        assert child.exit_code() is None
        with pytest.raises(TimeoutError):
            child.message(0.01)
        child.terminate()
        assert ended(child) == -signal.SIGTERM
        assert child.pid == bench.loads()[0], "nothing fresh took its place"
    assert gone(bench.loads())


def test_a_block_that_ends_while_a_base_is_being_loaded(bench: Bench) -> None:
    with bench.child(bench.resident("slow"), do="facts"):
        wait_until(bench.loads)
    assert gone(bench.loads())


def test_a_server_that_hangs_does_not_hold_up_the_end(bench: Bench) -> None:
    resident = bench.resident()
    with bench.child(resident, do="hang") as child:
        words = said(child)
        for pid in (bench.loads()[0], words["pid"]):
            os.kill(pid, signal.SIGSTOP)
        child.kill()
        assert ended(child) == -signal.SIGKILL
    assert gone([words["pid"], *bench.loads()])


@pytest.mark.parametrize("change", ["another base", "other content", "a file more"])
def test_another_base_is_loaded_anew(bench: Bench, change: str) -> None:
    resident = bench.resident()
    base = bench.base
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
    if change == "another base":
        base = bench.folder / "other"
        bench.new_base(base)
    elif change == "other content":
        (base / "config.json").write_text("[]")
    else:
        (base / "generation_config.json").write_text("{}")
    with bench.child(resident, base=base, do="facts") as child:
        assert ended(child) == 0
        assert child.base == "loaded"
    first, second = bench.loads()
    assert gone([first])
    assert resident.pid == second


def test_a_base_that_is_not_there_is_the_jobs_own_affair(bench: Bench) -> None:
    resident = bench.resident()
    with bench.child(resident, base=bench.folder / "nowhere", do="facts") as child:
        assert ended(child) == 0
        assert (child.base, resident.pid) == ("fresh", None)


def test_a_base_that_is_not_kept_is_none_that_is_resident(bench: Bench) -> None:
    resident = bench.resident("keeps nothing")
    for _ in range(2):
        with bench.child(resident, do="facts") as child:
            assert ended(child) == 0
            assert (child.base, child.pid != bench.loads()[0]) == ("fresh", True)
    assert len(bench.loads()) == 1


def test_a_server_that_nobody_needs_ends(bench: Bench) -> None:
    resident = bench.resident(idle_seconds=0.3)
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
    wait_until(lambda: gone(bench.loads()))
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
        assert child.base == "loaded"
    assert len(bench.loads()) == 2


_SUPERVISOR = """
import sys, time
from pathlib import Path
from tests.workers.forking.bench import Bench, said
bench = Bench(Path(sys.argv[1]))
with bench.child(bench.resident(), do="hang") as child:
    words = said(child)
    print("pids", words["pid"], words["other"], bench.loads()[0], flush=True)
    time.sleep(600)
"""


def test_a_supervisor_that_is_killed_leaves_nobody(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SUPERVISOR, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as supervisor:
        assert supervisor.stdout is not None
        line = next(line for line in supervisor.stdout if line.startswith("pids"))
        pid, other, server = map(int, line.split()[1:])
        assert not gone([pid])
        assert not gone([server])
        supervisor.kill()
    wait_until(lambda: gone([pid, server]))
    os.kill(other, signal.SIGKILL)  # started by the job without a leash: the supervisor's sweep is gone too


def test_a_supervisor_that_ends_takes_the_idle_server_along(bench: Bench) -> None:
    resident = bench.resident()
    with bench.child(resident, do="facts") as child:
        assert ended(child) == 0
    server = resident._server
    assert server is not None
    server._control.close()
    wait_until(lambda: gone(bench.loads()))
