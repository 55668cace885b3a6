"""A judge beside another one: what is measured is the first's, and where the second disagrees is counted."""

from __future__ import annotations

from collections.abc import Sequence

from autoclave.evaluation.calibration import Disagreement, disagreement
from autoclave.evaluation.judges.verdict import Judge, Verdict


class SecondOpinion:
    """A judge that gives the first's verdicts. The second judges the same answers; a failure of either is one
    of both, so that no figure is of a part."""

    def __init__(self, first: Judge, second: Judge) -> None:
        self._first, self._second = first, second
        self.name = first.name
        self._verdicts: tuple[list[Verdict], list[Verdict]] = ([], [])

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self._first.check_prompts(prompts)
        self._second.check_prompts(prompts)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        verdicts = self._first.judge(prompts, answers)
        seconds = self._second.judge(prompts, answers)
        self._verdicts[0].extend(verdicts)
        self._verdicts[1].extend(seconds)
        return verdicts

    def disagreement(self) -> Disagreement:
        """On all answers since the last call. Raises InputError if there were none."""
        first, second = self._verdicts
        self._verdicts = ([], [])
        return disagreement(first, second)
