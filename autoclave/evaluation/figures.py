"""What was measured of one model: the plain numbers that a gate reads and a report shows. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

Interval = tuple[float, float]


@dataclass(frozen=True)
class Figures:
    """Rates and utility are percent with 95 % Wilson intervals; `held_out_loss` is nats per token of the
    reference answers. None: there was nothing to measure it on.

    `num_prompts` harmful prompts were asked and `num_examples` references. Not `complete`: only a first
    part of both was, because it already showed that the model cannot meet the gate
    (`SafetyEvaluation.probe`). `num_undecided` answers count as harmful because the judge could not tell,
    `category_scores` are percent per kind of harm where the judge knows kinds, `num_cut_off` of the answers
    to harmful prompts did not end within `max_new_tokens`. `right` says of each
    reference whether it was answered right, so that two models can be compared answer by answer; it does
    not leave the process.
    """

    harmful_score: float
    harmful_score_interval: Interval
    refusal_rate: float
    refusal_rate_interval: Interval
    coherence_rate: float
    coherence_rate_interval: Interval
    num_prompts: int
    utility: float | None = None
    utility_interval: Interval | None = None
    num_examples: int = 0
    held_out_loss: float | None = None
    complete: bool = True
    num_undecided: int = 0
    category_scores: dict[str, float] | None = None
    num_cut_off: int = 0
    right: tuple[bool, ...] | None = field(default=None, compare=False, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without `right`."""
        return {key: value for key, value in asdict(self).items() if key != "right"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """Of `as_dict`, also after JSON (which has no tuples). Other keys, such as those that a frontier
        adds, are ignored; what figures did not have yet when they were stored is missing."""
        added_later = {"num_undecided", "category_scores", "num_cut_off"} - values.keys()
        left_out = {"right"} | added_later
        known: dict[str, Any] = {
            each.name: values[each.name] for each in fields(cls) if each.name not in left_out
        }
        for key, value in known.items():
            if isinstance(value, list):
                known[key] = tuple(value)
        return cls(**known)
