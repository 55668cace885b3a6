"""Everything a gate needs to know of a model: harm, coherence, utility and held-out loss, in one place.

The harmful prompts are cut in two: one half chooses the strength, the other judges the result, so that the
figure in the report was not selected for. The cut goes by a digest of the prompt, not by position: files
of prompts are often periodic (a few templates in turn) or sorted, and halves by position would differ in
kind. Whatever may be cut short (a half, the references) is in the order of its digests
for the same reason: its first part is a sample of the whole.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from autoclave.data.templates import prompt_text
from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.evaluation.figures import Figures
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.harmfulness import judged_by, last_user_text, read_prompts
from autoclave.evaluation.judges import Judge, Verdict, load_judge
from autoclave.evaluation.utility import (
    encode_references,
    held_out_loss,
    read_references,
    right_by,
    utility_of,
)
from autoclave.generation.answers import Prompt
from autoclave.generation.trial import Generators
from autoclave.progress import Progress, ProgressCallback, seconds_remaining
from autoclave.spec import MAX_LOSS_TOKENS, EvaluateSpec, GateSpec

Half = Literal["selection", "held_out"]
Reference = tuple[Prompt, str]

# Four harmful answers of 16 are at least 10.2 % (Wilson): a gate of 10 % need not see more.
NUM_PROBES = 16
NUM_PROBE_REFERENCES = 32

# Before and after are compared on the same answers, so this many are enough; it bounds a cheap probe.
MAX_LOSS_EXAMPLES = 256
# Logits of a whole vocabulary are held for a batch, so it must not grow with that of decoding.
_LOSS_BATCH_TOKENS = 8192


@dataclass(frozen=True, eq=False)
class SafetyEvaluation:
    """What to measure on; the model comes with each call. `references` and `loss_examples` are empty where
    there is nothing to measure utility on. The model must be on `device`. How it answers is decided with the
    first model that is measured, on prompts of the half that chooses, for all of them."""

    tokenizer: Any
    judge: Judge
    prompts: dict[Half, list[Prompt]]
    references: list[Reference]
    loss_examples: list[Example]
    spec: EvaluateSpec
    device: str
    generators: Generators

    @classmethod
    def load(
        cls,
        tokenizer: Any,
        *,
        harmful_eval: str | Path,
        judge: str,
        utility_eval: str | Path | None,
        spec: EvaluateSpec,
        device: str,
    ) -> Self:
        """`judge` is a name for `load_judge`; both files are chat JSONL. Raises InputError and its subclasses
        for whatever would fail later: broken files, an unknown judge or one that cannot judge a prompt,
        fewer than two prompts."""
        loaded_judge = load_judge(judge, device=device or None)
        prompts = sorted(read_prompts(harmful_eval, max_prompts=spec.max_prompts), key=_digest)
        if len(prompts) < 2:
            raise InputError(
                f"{harmful_eval}: {len(prompts)} harmful prompt (max_prompts is {spec.max_prompts}), and at "
                "least 2 are needed: one half chooses the strength, the other judges it. Add prompts."
            )
        loaded_judge.check_prompts([last_user_text(prompt) for prompt in prompts])
        half = len(prompts) // 2
        references: list[Reference] = []
        loss_examples: list[Example] = []
        if utility_eval is not None:
            references = sorted(read_references(utility_eval, max_examples=spec.max_prompts), key=_digest)
            encoded = encode_references(
                tokenizer, utility_eval, max_examples=spec.max_prompts, max_seq_length=MAX_LOSS_TOKENS
            )
            loss_examples = sorted(encoded, key=_example_digest)[:MAX_LOSS_EXAMPLES]
        return cls(
            tokenizer=tokenizer,
            judge=loaded_judge,
            prompts={"selection": prompts[:half], "held_out": prompts[half:]},
            references=references,
            loss_examples=loss_examples,
            spec=spec,
            device=device,
            generators=Generators(
                tokenizer,
                trial_prompts=prompts[:half],
                max_new_tokens=spec.max_new_tokens,
                generation=spec.generation,
                batch_tokens=spec.batch_tokens,
            ),
        )

    def measure(
        self,
        model: Any,
        half: Half,
        *,
        utility_from: Figures | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Figures:
        """All prompts of the half, all references. `utility_from` are complete figures of the same model on
        the other half: their utility and loss, which know no halves, are taken over, not measured again."""
        prompts = self.prompts[half]
        references = [] if utility_from else self.references
        count = _AnswerCount(len(prompts) + len(references), on_progress)
        harm = HarmfulnessResult.of(self._verdicts(model, prompts, count))
        if utility_from is None:
            return self._figures(model, harm, references, count, complete=True)
        assert utility_from.complete, "utility of a part of the references"
        return replace(utility_from, **asdict(harm))

    def probe(
        self, model: Any, half: Half, gate: GateSpec, *, on_progress: ProgressCallback | None = None
    ) -> Figures:
        """As `measure`, but stops early for a model that cannot meet the gate; for a search over many.

        First only NUM_PROBES prompts are asked. If the 95 % interval of a rate on them lies wholly on the
        wrong side of the gate, the other prompts are not asked and utility is of NUM_PROBE_REFERENCES
        references: `complete` is False then. The held-out loss is always of all its examples.
        """
        prompts, references = self.prompts[half], self.references
        count = _AnswerCount(len(prompts) + len(references), on_progress)
        verdicts = self._verdicts(model, prompts[:NUM_PROBES], count)
        rest = prompts[NUM_PROBES:]
        complete = not rest or not _misses(HarmfulnessResult.of(verdicts), gate)
        if complete:
            verdicts += self._verdicts(model, rest, count)
        else:
            references = references[:NUM_PROBE_REFERENCES]
        return self._figures(model, HarmfulnessResult.of(verdicts), references, count, complete=complete)

    def probes(self, num_probes: int = 8) -> list[list[int]]:
        """Token ids of a few prompts, to recognise a model by its logits."""
        chosen = (self.prompts["held_out"] + [prompt for prompt, _ in self.references])[:num_probes]
        assert all(last_user_text(prompt) for prompt in chosen), "a probe needs a user message"
        texts = [prompt_text(self.tokenizer, prompt) for prompt in chosen]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    def _verdicts(self, model: Any, prompts: Sequence[Prompt], count: _AnswerCount) -> list[Verdict]:
        generator = self.generators.of(model)
        verdicts = judged_by(generator, prompts, self.judge, self.spec, on_progress=count.on_progress)
        count.done += len(prompts)
        return verdicts

    def _figures(
        self,
        model: Any,
        harm: HarmfulnessResult,
        references: Sequence[Reference],
        count: _AnswerCount,
        *,
        complete: bool,
    ) -> Figures:
        figures = Figures(**asdict(harm), complete=complete)
        if references:
            generator = self.generators.of(model)
            right = right_by(generator, references, self.spec, on_progress=count.on_progress)
            count.done += len(references)
            figures = replace(figures, **asdict(utility_of(right)), right=tuple(right))
        if self.loss_examples:
            batch_tokens = min(self.spec.batch_tokens, _LOSS_BATCH_TOKENS)
            loss = held_out_loss(model, self.loss_examples, device=self.device, batch_tokens=batch_tokens)
            figures = replace(figures, held_out_loss=loss)
        return figures


def _misses(harm: HarmfulnessResult, gate: GateSpec) -> bool:
    """A rate's whole interval lies on the wrong side of the gate."""
    return (
        harm.harmful_score_interval[0] > gate.max_harmful_score
        or _is_below(harm.refusal_rate_interval, gate.min_refusal_rate)
        or _is_below(harm.coherence_rate_interval, gate.min_coherence_rate)
    )


def _is_below(interval: tuple[float, float], lowest: float | None) -> bool:
    return lowest is not None and interval[1] < lowest


def _digest(prompt: Prompt | Reference) -> bytes:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).digest()


def _example_digest(example: Example) -> bytes:
    return hashlib.sha256(example.input_ids.tobytes()).digest()


@dataclass
class _AnswerCount:
    """Makes one progress of several passes. An evaluation that stops early does not reach the total."""

    total: int
    report: ProgressCallback | None
    done: int = 0
    started: float = field(default_factory=time.perf_counter)

    def on_progress(self, progress: Progress) -> None:
        if self.report:
            done = self.done + progress.step
            left = seconds_remaining(time.perf_counter() - self.started, done, self.total - done)
            self.report(replace(progress, step=done, total_steps=self.total, seconds_remaining=left))
