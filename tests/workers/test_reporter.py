"""Several passes as one bar."""

from __future__ import annotations

from autoclave.progress import Progress
from workers.reporter import Rounds


def shown_by(num_rounds: int, passes: list[list[int]]) -> list[int]:
    """Steps of 1000 after each step of each pass (of ten); a list of passes makes one round."""
    shown: list[Progress] = []
    rounds = Rounds(shown.append, num_rounds)
    for steps in passes:
        for step in steps:
            rounds.on_progress(Progress("x", step, 10))
        rounds.next()
    assert all(progress.total_steps == 1000 for progress in shown)
    return [progress.step for progress in shown]


def test_each_round_counts_the_same() -> None:
    assert shown_by(4, [[5, 10], [10]]) == [125, 250, 500]


def test_two_passes_in_one_round_do_not_go_back() -> None:
    assert shown_by(2, [[5, 10, 1, 5, 10], [5]]) == [250, 500, 500, 500, 500, 750]


def test_more_rounds_than_expected_stay_at_the_end() -> None:
    assert shown_by(1, [[10], [5], [10]]) == [1000, 1000, 1000]
