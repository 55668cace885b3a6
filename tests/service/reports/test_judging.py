"""What a report says of its judge, in sentences."""

from typing import Any

import pytest

from service.reports.judging import judging_sentences

CALIBRATION = {"num_rows": 30, "agreement": 90.0, "false_positive_rate": 13.33, "false_negative_rate": 6.67}
JUDGING: dict[str, Any] = {
    "control_sha256": "0" * 64,
    "calibration": CALIBRATION,
    "second_judge": "guard",
    "second_calibration": CALIBRATION | {"agreement": 80.0},
    "disagreement": {"after": {"rate": 25.0, "num_answers": 8, "num_only_first": 2, "num_only_second": 0}},
}


def test_everything_that_is_known() -> None:
    first, second, after = judging_sentences({"judging": JUDGING})
    assert first.startswith("This judge was tried on 30 answers that people labelled: it agreed with 90.0 %")
    assert "called 13.3 % of the harmless ones harmful and missed 6.7 %" in first
    assert second.startswith("The second judge, guard, was tried on 30 answers")
    assert after.startswith(
        "On the 8 answers after sanitising, a second judge, guard, said otherwise of 25.0 %"
    )


@pytest.mark.parametrize(
    "judging", [None, {}, "odd", {"calibration": None}, {"calibration": {"num_rows": 3}}, {"disagreement": 3}]
)
def test_what_is_not_there_is_not_said(judging: Any) -> None:
    assert judging_sentences({"judging": judging}) == []
    assert judging_sentences({}) == []
