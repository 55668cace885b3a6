"""What `torchrun` tells the processes it starts. Torch-free: commands look before they load anything."""

from __future__ import annotations

import os
from collections.abc import Mapping

from autoclave.errors import InputError

STORE_FILE = "AUTOCLAVE_RANKS_STORE"
"""Set by `training/launch.py`: a file in which the ranks find each other, instead of a port."""


def size_of(environment: Mapping[str, str]) -> int:
    """How many processes train together; 1 where none of this is set."""
    return int(environment.get("WORLD_SIZE", "1"))


def rank_of(environment: Mapping[str, str]) -> int:
    return int(environment.get("RANK", "0"))


def local_rank_of(environment: Mapping[str, str]) -> tuple[int, int]:
    """Place of this process on its machine, and how many are there."""
    return int(environment.get("LOCAL_RANK", "0")), int(environment.get("LOCAL_WORLD_SIZE", "1"))


def refuse_several_processes(what: str) -> None:
    """Raises InputError under torchrun: each process would do all of it, and write to one place."""
    size = size_of(os.environ)
    if size > 1:
        raise InputError(
            f"{what} runs in one process, and torchrun started {size}. Start it without torchrun."
        )
