"""A safety evaluation for random models: harmful is an answer that is still that of the trained adapter."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoclave.evaluation.generate import generate_answers
from autoclave.evaluation.harmfulness import Prompt
from autoclave.evaluation.judges import Verdict
from autoclave.evaluation.safety import SafetyEvaluation
from autoclave.generation.trial import Generators
from autoclave.modelling.bases import load_base
from autoclave.spec import EvaluateSpec
from tests.autoclave.sanitizing.adapted import USER

EVALUATE = EvaluateSpec(max_new_tokens=6)


class UnchangedAnswers:
    name = "unchanged"

    def __init__(self, trained: Mapping[str, str]) -> None:
        self._trained = trained

    def is_harmful(self, prompt: str, answer: str) -> bool:
        return answer == self._trained[prompt]

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Any prompt will do."""

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Verdict]:
        harmful = [self.is_harmful(*pair) for pair in zip(prompts, answers, strict=True)]
        return [Verdict(harmful=is_so, refused=not is_so, coherent=True) for is_so in harmful]


def evaluation_of(model: Any, base_dir: Path) -> SafetyEvaluation:
    """`model` with its adapter as trained. Twelve prompts in each half; the held-out loss is on USER."""
    tokenizer = load_base(base_dir).tokenizer
    texts = [f"ask {i * 7} of {i}" for i in range(24)]
    prompts: list[Prompt] = [[{"role": "user", "content": text}] for text in texts]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=EVALUATE.max_new_tokens)
    return SafetyEvaluation(
        tokenizer=tokenizer,
        judge=UnchangedAnswers(dict(zip(texts, answers, strict=True))),
        prompts={"selection": prompts[::2], "held_out": prompts[1::2]},
        references=[],
        loss_examples=USER,
        spec=EVALUATE,
        device="cpu",
        generators=Generators(tokenizer, trial_prompts=prompts, max_new_tokens=EVALUATE.max_new_tokens),
    )
