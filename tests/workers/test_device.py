"""What a worker says about its device: from a scripted `nvidia-smi`, or from the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workers import device
from workers.device import Device

MIB = 1024 * 1024


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program named `nvidia-smi`, first in PATH: prints `answer`, notes its arguments."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\nhere = pathlib.Path(__file__).parent\n"
        "with (here / 'asked').open('a') as file: print(*sys.argv[1:], file=file)\n"
        "text = (here / 'answer').read_text()\nprint(text)\nsys.exit('No devices' in text)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_card_is_shown_with_its_memory(driver: Path) -> None:
    (driver / "answer").write_text("NVIDIA H100 80GB HBM3, 1024, 81559")
    reading = Device("3").reading(None)
    assert (reading.kind, reading.name) == ("cuda", "NVIDIA H100 80GB HBM3")
    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (1024 * MIB, 81559 * MIB)
    assert "--id=3" in (driver / "asked").read_text().split()


def test_several_cards_are_added_up(driver: Path) -> None:
    (driver / "answer").write_text("NVIDIA L4, 100, 23034\nNVIDIA L4, 1, 23034")
    reading = Device(None).reading(None)
    assert (reading.name, reading.memory_used_bytes) == ("2 x NVIDIA L4", 101 * MIB)
    assert reading.memory_total_bytes == 2 * 23034 * MIB
    assert reading.memory_each_bytes == 23034 * MIB
    assert "--id" not in (driver / "asked").read_text()


def test_the_driver_is_not_asked_at_every_heartbeat(driver: Path) -> None:
    (driver / "answer").write_text("NVIDIA L4, 100, 23034")
    now = 0.0
    card = Device(None, clock=lambda: now)
    readings = [card.reading(None) for _ in range(3)]
    (driver / "answer").write_text("NVIDIA L4, 200, 23034")
    now = device.ASK_SECONDS
    readings.append(card.reading(None))
    assert [reading.memory_used_bytes for reading in readings] == [100 * MIB] * 3 + [200 * MIB]
    assert len((driver / "asked").read_text().splitlines()) == 2


def test_an_answer_that_fails_once_leaves_the_last_one(driver: Path) -> None:
    (driver / "answer").write_text("NVIDIA L4, 100, 23034")
    now = 0.0
    card = Device(None, clock=lambda: now)
    card.reading(None)
    (driver / "answer").write_text("Unknown Error")
    now = device.ASK_SECONDS
    assert card.reading(None).memory_used_bytes == 100 * MIB


@pytest.mark.parametrize("answer", ["No devices were found", "", "[N/A], [N/A], [N/A]"])
def test_a_driver_without_a_card_leaves_the_processor(driver: Path, answer: str) -> None:
    (driver / "answer").write_text(answer)
    assert Device(None).reading(None).kind == "cpu"


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_cards_are_not_asked_for(driver: Path, visible: str) -> None:
    assert Device(visible).reading(None).kind == "cpu"
    assert not (driver / "asked").exists()


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="the kernel does not say how much it has")
def test_on_a_processor_it_is_the_memory_of_the_job() -> None:
    held = "x = bytearray(50_000_000); print(len(x), flush=True); import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        reading = Device("").reading(child.pid)
        assert reading.memory_used_bytes is not None
        assert reading.memory_total_bytes is not None
        assert 50_000_000 < reading.memory_used_bytes < 200_000_000
        assert reading.memory_used_bytes < reading.memory_total_bytes
        assert reading.name
        assert Device("").reading(None).memory_used_bytes is None
    finally:
        child.kill()
        child.communicate()
