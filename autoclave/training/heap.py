"""What one step frees is kept for the next, on a CPU with glibc's allocator.

Left to itself, malloc gives the end of the heap back to the system when more than 64 MiB of it are free, and
maps every block of more than 32 MiB anew. A training step frees hundreds of MiB and asks for them again:
unless something happens to lie at the heap's end, the kernel clears and maps every page of them in every step
(mallopt(3); benchmarks/heap.py). While a run lasts neither is done; afterwards what is free is given back.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = -1
_LARGEST_OF_ITSELF, _MAPPINGS_OF_ITSELF = 64 * 2**20, 65536


@contextmanager
def kept_heap() -> Iterator[bool]:
    """Inside the block this process keeps its heap. Yields whether: False without glibc. Not for blocks
    within each other: the inner one's end ends it."""
    if platform.libc_ver()[0] != "glibc":
        yield False
        return
    libc = ctypes.CDLL(None)
    try:
        yield bool(libc.mallopt(_M_TRIM_THRESHOLD, _NEVER) and libc.mallopt(_M_MMAP_MAX, 0))
    finally:
        # There is no way to ask for what was set; these are what malloc's own adjustment ends with.
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST_OF_ITSELF)
        libc.mallopt(_M_MMAP_MAX, _MAPPINGS_OF_ITSELF)
        libc.malloc_trim(0)
