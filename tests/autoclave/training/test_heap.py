"""What a step frees is there for the next one, and is given back after the run."""

import json
import platform
import subprocess
import sys

import pytest

from autoclave.training import heap
from autoclave.training.heap import kept_heap

# Faults: how often the kernel had to find a page. In a process of its own, whose heap nobody else fills.
PROGRAM = """
import json, resource

import torch

from autoclave.training.heap import kept_heap


def step(mib, count):
    tensors = [torch.empty(mib * 2**18).fill_(1.0) for _ in range(count)]


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def faults(mib, count):
    for _ in range(6):  # until the heap has grown as far as it will
        step(mib, count)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        step(mib, count)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


left = faults(40, 5)  # first: a heap that was kept once has room for some of them
with kept_heap() as is_kept:
    kept = faults(40, 5), faults(10, 20)
    inside = resident()
print(json.dumps({"left": left, "kept": kept, "given back": inside - resident(), "is_kept": is_kept}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this malloc is not glibc's")
def test_pages_are_found_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["is_kept"]
    assert max(found["kept"]) < 1000 < 50_000 < found["left"], found
    assert found["given back"] > 150, found


def test_another_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("", ""))
    with kept_heap() as is_kept:
        assert not is_kept
