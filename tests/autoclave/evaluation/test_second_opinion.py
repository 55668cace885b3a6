"""The first judge's verdicts, and on which answers the second one says otherwise."""

import pytest

from autoclave.errors import InputError, JudgeError
from autoclave.evaluation.judges import RefusalJudge
from autoclave.evaluation.judges.verdict import Verdict
from autoclave.evaluation.second_opinion import SecondOpinion


class Words:
    """Harmful is what holds the word; refuses prompts with it."""

    def __init__(self, word: str) -> None:
        self.name = word

    def check_prompts(self, prompts: list[str]) -> None:
        if any(self.name in prompt for prompt in prompts):
            raise JudgeError(f"no prompts with {self.name}")

    def judge(self, prompts: list[str], answers: list[str]) -> list[Verdict]:
        return [Verdict(self.name in answer, False, True) for answer in answers]


def test_verdicts_are_the_firsts_and_the_difference_is_counted() -> None:
    both = SecondOpinion(Words("zap"), Words("zip"))
    answers = ["zap", "zip", "zap zip", "nothing"]
    assert [v.harmful for v in both.judge([""] * 4, answers)] == [True, False, True, False]
    both.judge([""], ["zap"])
    found = both.disagreement()
    assert (found.num_answers, found.num_only_first, found.num_only_second, found.rate) == (5, 2, 1, 60.0)
    with pytest.raises(InputError, match="no answers"):
        both.disagreement()
    assert both.name == "zap"


def test_both_must_be_able_to_judge() -> None:
    both = SecondOpinion(RefusalJudge(), Words("zip"))
    both.check_prompts(["zap"])
    with pytest.raises(JudgeError, match="no prompts with zip"):
        both.check_prompts(["zip"])
