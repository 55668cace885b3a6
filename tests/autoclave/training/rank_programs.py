"""What the processes of test_ranks.py and test_launch.py run; importable by them, light where it can be."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoclave.training.ranks import Ranks, joined_ranks

if TYPE_CHECKING:
    from autoclave.progress import Progress
    from tests.autoclave.training.test_exact_resume import Case


def dies(folder: Path) -> None:
    """Rank 1 is killed while rank 0 waits for it."""
    with joined_ranks("cpu") as ranks:
        ranks.totals(1.0)
        (folder / f"pid-{ranks.rank}").write_text(f"{os.getpid()} {os.getpgrp()}")
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.totals(1.0)


def raises() -> None:
    """Rank 1, of its own; rank 0 because of that."""
    from autoclave.errors import DataError, DataIssue, OtherRankError

    if os.environ["RANK"] == "0":
        raise OtherRankError
    raise DataError([DataIssue(3, "/messages", "rule", "Broken.", "Mend it.")], 7, "a.jsonl")


def waits(folder: Path) -> None:
    """For ever, in the middle of a pass."""
    with joined_ranks("cpu") as ranks:
        (folder / f"pid-{ranks.rank}").write_text(f"{os.getpid()} {os.getpgrp()}")
        time.sleep(600)


def runs(base_dir: Path, folder: Path) -> dict[str, Any]:
    """All that test_ranks.py looks at, in one start. Every rank leaves its weights in `folder`."""
    from tests.autoclave.training.test_ranks import CASES

    with joined_ranks("cpu") as ranks:
        found: dict[str, Any] = {}
        for case in CASES:
            found[case.name] = _run(base_dir, folder, case, ranks)
        for name, scene in (
            ("resume", _resumed),
            ("cancel", _cancelled),
            ("diverges", _diverges),
            ("memory", _runs_out_of_memory),
            ("fails", _fails),
            ("refused", _refused),
            ("damaged", _damaged),
        ):
            found[name] = scene(base_dir, folder / name, ranks)
        return found


def _run(base_dir: Path, folder: Path, case: Case, ranks: Ranks, **more: Any) -> Any:
    from safetensors.torch import save_file

    from tests.autoclave.training.test_ranks import attempt

    weights, result = attempt(base_dir, case, ranks=ranks, **more)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / f"{case.name}-{ranks.rank}")
    return result


def _resumed(base_dir: Path, folder: Path, ranks: Ranks) -> Any:
    """With dropout: an unbroken run, one that stops after five steps, and two that go on: on these ranks, and
    (in the test) in one process."""
    import shutil

    from autoclave.errors import CancelledError, OtherRankError
    from autoclave.training.checkpoint import CheckpointStore
    from tests.autoclave.training.test_ranks import DROPOUT

    whole = _run(base_dir, folder / "whole", DROPOUT, ranks)

    def stop(progress: Progress) -> None:
        assert ranks.is_first, "only rank 0 reports"
        if progress.step == 5:
            raise CancelledError

    # The other ranks have no folder: what rank 0 loads must reach them.
    store = CheckpointStore(folder / "store" if ranks.is_first else folder / "nothing")
    try:
        _run(base_dir, folder, DROPOUT, ranks, checkpoint=store, checkpoint_every_steps=2, on_progress=stop)
    except (CancelledError, OtherRankError) as error:
        stopped = type(error).__name__
    if ranks.is_first:
        shutil.copytree(folder / "store", folder / "store-for-one")
    first_steps: list[int] = []
    result = _run(
        base_dir,
        folder / "broken",
        DROPOUT,
        ranks,
        checkpoint=store,
        on_progress=lambda progress: first_steps.append(progress.step),
    )
    return whole, result, stopped, first_steps


def _raised(folder: Path, ranks: Ranks, run: Any) -> list[str]:
    """What each rank raised."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        run()
        text = "nothing"
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
    (folder / f"raised-{ranks.rank}").write_text(text)
    ranks.totals(1.0)  # all have written
    return [(folder / f"raised-{rank}").read_text() for rank in range(ranks.size)]


def _cancelled(base_dir: Path, folder: Path, ranks: Ranks) -> list[str]:
    from autoclave.errors import CancelledError
    from tests.autoclave.training.test_ranks import PLAIN

    def stop(progress: Progress) -> None:
        if progress.step == 8:
            raise CancelledError("at the last step")

    return _raised(folder, ranks, lambda: _run(base_dir, folder, PLAIN, ranks, on_progress=stop))


def _diverges(base_dir: Path, folder: Path, ranks: Ranks) -> list[str]:
    """The third step's loss is infinite on the rank that has its longest row, and healthy on the other."""
    import torch

    from autoclave.training.loss import causal_loss
    from autoclave.training.objective import Supervised
    from tests.autoclave.training.test_ranks import PLAIN

    calls = 0

    def diverging(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        summed = causal_loss(model, batch)
        return summed._replace(loss=summed.loss * torch.inf) if calls == 3 and ranks.is_first else summed

    return _raised(
        folder, ranks, lambda: _run(base_dir, folder, PLAIN, ranks, objective=Supervised(diverging))
    )


def _runs_out_of_memory(base_dir: Path, folder: Path, ranks: Ranks) -> Any:
    """Rank 1 in its second step, once."""
    import torch

    from autoclave.training.loss import causal_loss
    from autoclave.training.objective import Supervised
    from tests.autoclave.training.test_ranks import PLAIN

    calls = 0

    def greedy(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and ranks.rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return causal_loss(model, batch)

    return _run(base_dir, folder, PLAIN, ranks, objective=Supervised(greedy))


def _fails(base_dir: Path, folder: Path, ranks: Ranks) -> list[str]:
    """Rank 1 breaks in its second step."""
    from autoclave.training.loss import causal_loss
    from autoclave.training.objective import Supervised
    from tests.autoclave.training.test_ranks import PLAIN

    calls = 0

    def failing(model: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and ranks.rank == 1:
            raise ValueError("broken")
        return causal_loss(model, batch)

    return _raised(folder, ranks, lambda: _run(base_dir, folder, PLAIN, ranks, objective=Supervised(failing)))


def _refused(base_dir: Path, folder: Path, ranks: Ranks) -> list[str]:
    from autoclave.defences.vaccine import Vaccine
    from autoclave.spec import VaccineSpec
    from tests.autoclave.training.test_ranks import PLAIN

    return _raised(
        folder, ranks, lambda: _run(base_dir, folder, PLAIN, ranks, objective=Vaccine(VaccineSpec()))
    )


def _damaged(base_dir: Path, folder: Path, ranks: Ranks) -> list[str]:
    """A checkpoint that rank 0 cannot read."""
    from autoclave.training.checkpoint import CheckpointStore
    from tests.autoclave.training.test_ranks import PLAIN

    (folder / "store" / "latest").mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(folder / "store")
    return _raised(folder, ranks, lambda: _run(base_dir, folder, PLAIN, ranks, checkpoint=store))
