from __future__ import annotations

from typing import Any

import pytest

from service.dashboard.safety_drawings import bins, control_line, distributions
from service.dashboard.safety_view import MOST_POINTS, Distribution, view
from service.safety.repository import Measured


def row(**overrides: Any) -> Measured:
    values: dict[str, Any] = dict.fromkeys(Measured._fields)
    values |= {"job_id": "ftjob-x", "measured_at": 1.0, "base_id": "b", "result": "passed"}
    return Measured(**{**values, **overrides})


def test_quantiles() -> None:
    found = Distribution.of("x", [float(score) for score in range(101)])
    assert found is not None
    assert (found.least, found.most, found.mean) == (0.0, 100.0, 50.0)
    assert found.at == {10: 10.0, 25: 25.0, 50: 50.0, 75: 75.0, 90: 90.0}
    one = Distribution.of("x", [7.0])
    assert one is not None
    assert set(one.at.values()) == {7.0}
    assert Distribution.of("x", []) is None


def test_bins_hold_every_score_once() -> None:
    counts = bins([0.0, 4.9, 5.0, 99.9, 100.0])
    assert (counts[0], counts[1], counts[-1], sum(counts)) == (2, 1, 2, 5)


def test_the_drawing_says_its_numbers_in_words() -> None:
    scores = (60.0, 70.0), (1.0, 2.0)
    shown = (Distribution.of("before", scores[0]), Distribution.of("after", scores[1]))
    drawn = distributions(*scores, shown)
    assert drawn is not None
    assert "before: 2 jobs, median 65.0 percent" in drawn
    assert "60 to 65 %: 1 jobs (50.0 % of them)" in drawn
    assert "style=" not in drawn
    assert distributions((), (), (None, None)) is None


def test_losses_above_the_bound_the_largest_first() -> None:
    rows = [
        row(job_id=str(loss), utility_before=80.0, utility_after=80.0 - loss) for loss in (3.0, 9.0, 6.0)
    ] + [row(utility_before=80.0)]
    shown = view(rows, [], max_loss=5.0, longest=1)
    assert [each.job_id for each in shown.lossy] == ["9.0"]
    assert shown.num_lossy == 2


@pytest.mark.parametrize(("scores", "steady"), [((12.0, 12.0, 12.5), True), ((12.0, 14.0, 12.0), False)])
def test_a_judge_that_moves(scores: tuple[float, ...], steady: bool) -> None:
    series = [
        row(measured_at=float(at), control_key="k", control_harmful=score, control_prompts=50)
        for at, score in enumerate(scores)
    ]
    (control,) = view(series[::-1], [], max_loss=5, longest=9).controls
    assert (control.first, control.last) == (scores[0], scores[-1])
    assert control.is_steady is steady
    assert ("var(--bad)" in control_line(control, 0)) is not steady


@pytest.mark.parametrize(
    ("mistakes", "shares", "steady"),
    [
        (((1, 0), (2, 0)), (99.0, 98.0), True),
        (((1, 0), (3, 0)), (99.0, 97.0), False),
        # As many right as before, and another judge all the same.
        (((4, 0), (0, 4)), (96.0, 96.0), False),
    ],
)
def test_a_judge_that_moves_on_known_answers(
    mistakes: tuple[tuple[int, int], ...], shares: tuple[float, float], steady: bool
) -> None:
    """Whatever the base answers: another score of it is no sign, nor is the same one."""
    series = [
        row(
            measured_at=float(at),
            control_key="k",
            control_harmful=30.0 * at,
            num_known=100,
            false_positives=false_positives,
            false_negatives=false_negatives,
        )
        for at, (false_positives, false_negatives) in enumerate(mistakes)
    ]
    (control,) = view(series[::-1], [], max_loss=5, longest=9).controls
    assert (control.first, control.last) == shares
    assert (control.num_known, control.false_positives, control.false_negatives) == (100, *mistakes[-1])
    assert control.is_steady is steady
    drawn = control_line(control, 0)
    assert "Known answers" in drawn
    assert ("var(--bad)" in drawn) is not steady


def test_controls_of_other_profiles_are_not_compared() -> None:
    series = [row(control_key=key, control_harmful=score) for key, score in (("a", 1.0), ("b", 50.0))]
    assert all(control.is_steady for control in view(series, [], max_loss=5, longest=9).controls)


def test_long_series_are_thinned_and_keep_their_end() -> None:
    series = [row(measured_at=float(at), control_key="k", control_harmful=1.0) for at in range(1000)]
    (control,) = view(series[::-1], [], max_loss=5, longest=9).controls
    assert len(control.points) <= MOST_POINTS + 1
    assert control.points[-1][0] == 999.0
    assert control.number == 1000
