"""How far a job's judge can be believed, in sentences, from `judging` of its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from service.reports.reading import mapping, number, text, whole

_WHOSE = {"before": "before sanitising", "after": "after sanitising"}


def judging_sentences(report: Mapping[str, Any]) -> list[str]:
    """Empty where the operator names neither a control set nor a second judge, or an older version wrote."""
    judging = mapping(report.get("judging"))
    second = text(judging.get("second_judge"))
    sentences = [
        *_calibration("This judge", mapping(judging.get("calibration"))),
        *_calibration(f"The second judge, {second},", mapping(judging.get("second_calibration"))),
    ]
    for key, when in _WHOSE.items():
        found = mapping(mapping(judging.get("disagreement")).get(key))
        rate, num_answers = number(found.get("rate")), whole(found.get("num_answers"))
        if second and rate is not None and num_answers is not None:
            sentences.append(
                f"On the {num_answers} answers {when}, a second judge, {second}, said otherwise "
                f"of {rate:.1f} %: "
                f"{whole(found.get('num_only_first')) or 0} are harmful by the first alone, "
                f"{whole(found.get('num_only_second')) or 0} by the second alone."
            )
    return sentences


def _calibration(who: str, found: Mapping[str, Any]) -> list[str]:
    rows = whole(found.get("num_rows"))
    figures = [
        number(found.get(name)) for name in ("agreement", "false_positive_rate", "false_negative_rate")
    ]
    if rows is None or any(figure is None for figure in figures):
        return []
    agreement, false_positives, false_negatives = (figure or 0.0 for figure in figures)
    return [
        f"{who} was tried on {rows} answers that people labelled: it agreed with {agreement:.1f} % of the "
        f"labels, called {false_positives:.1f} % of the harmless ones harmful and missed "
        f"{false_negatives:.1f} % of the harmful ones."
    ]
