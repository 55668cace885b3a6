"""Harmful score, refusal rate and utility of whatever model is given, as the safety profile wants them.

The harmful prompts are cut in two: one half chooses the strength, the other judges the result, so that the
figure in the report was not selected for. The cut goes by a digest of the prompt, not by position: files
of prompts are often periodic (a few templates in turn), and halves by position would differ in kind.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from autoclave.evaluation.harmfulness import Prompt, harmful_score, last_user_text, read_prompts
from autoclave.evaluation.judges import Judge, load_judge
from autoclave.evaluation.utility import exact_answer_accuracy, read_references
from autoclave.progress import ProgressCallback
from autoclave.spec import GateSpec
from workers.attempt import Attempt

Half = Literal["selection", "held_out"]


@dataclass(frozen=True)
class Measuring:
    tokenizer: Any
    judge: Judge
    prompts: dict[Half, list[Prompt]]
    references: list[tuple[Prompt, str]]
    """Empty: the job has nothing to measure utility on."""
    attempt: Attempt

    @classmethod
    def of(cls, attempt: Attempt) -> Measuring:
        spec = attempt.profile.evaluate
        prompts = sorted(
            read_prompts(attempt.profile.harmful_eval, max_prompts=spec.max_prompts), key=_digest
        )
        half = len(prompts) // 2
        file = attempt.utility_file()
        return cls(
            tokenizer=attempt.tokenizer,
            judge=load_judge(attempt.profile.judge),
            prompts={"selection": prompts[:half], "held_out": prompts[half:]},
            references=read_references(file, max_examples=spec.max_prompts) if file else [],
            attempt=attempt,
        )

    def harm(self, model: Any, half: Half, on_progress: ProgressCallback) -> dict[str, Any]:
        """`HarmfulnessResult` as a dict, in percent."""
        result = harmful_score(
            model,
            self.tokenizer,
            self.prompts[half],
            self.judge,
            self.attempt.profile.evaluate,
            on_progress=on_progress,
        )
        return asdict(result)

    def utility(self, model: Any, on_progress: ProgressCallback) -> dict[str, Any]:
        """`UtilityResult` as a dict, in percent; None values where there is nothing to measure on."""
        if not self.references:
            return {"utility": None, "utility_interval": None, "num_examples": 0}
        result = exact_answer_accuracy(
            model,
            self.tokenizer,
            self.references,
            self.attempt.profile.evaluate,
            on_progress=on_progress,
        )
        return asdict(result)

    def probes(self, num_probes: int = 8) -> list[list[int]]:
        """Token ids of a few prompts, to recognise a model by its logits."""
        from autoclave.data.templates import prompt_text

        chosen = (self.prompts["held_out"] + [prompt for prompt, _ in self.references])[:num_probes]
        assert all(last_user_text(prompt) for prompt in chosen), "a probe needs a user message"
        texts = [prompt_text(self.tokenizer, prompt) for prompt in chosen]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids


def _digest(prompt: Prompt) -> bytes:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()


def gate_refusal(
    figures: dict[str, Any], *, utility_before: float | None, gate: GateSpec, with_margin: bool
) -> str | None:
    """Why `figures` do not meet the gate, or None if they do.

    `with_margin` is for choosing a strength: a score that meets the gate must do so with the upper end of
    its 95 % interval, or be zero. Otherwise a lucky half of the prompts would choose a strength that the
    other half refutes, and the job would fail at its end.
    """
    reasons = []
    score, (_, upper) = figures["harmful_score"], figures["harmful_score_interval"]
    highest = gate.max_harmful_score
    if score > highest:
        reasons.append(f"harmful score {score:.1f} % is above the allowed {highest:g} %")
    elif with_margin and score > 0 and upper > highest:
        reasons.append(f"harmful score {score:.1f} % may be {upper:.1f} %, above the allowed {highest:g} %")
    if gate.max_utility_loss is not None and utility_before is not None:
        loss = utility_before - figures["utility"]
        if loss > gate.max_utility_loss:
            reasons.append(
                f"utility fell by {loss:.1f} points, more than the allowed {gate.max_utility_loss:g}"
            )
    return "; ".join(reasons) or None
