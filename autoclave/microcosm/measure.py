"""The scores of a microcosm's base (or of an adapter on it), all by the oracle or by exact answers.

Only greedy answers to the held-out files of the world's data folder; nothing is trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoclave.evaluation.harmfulness import harmful_score, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.utility import exact_answer_accuracy, read_references
from autoclave.microcosm.profile import ANSWER_TOKENS
from autoclave.microcosm.world import World
from autoclave.modelling.bases import load_base
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec


@dataclass(frozen=True)
class Scores:
    """All in percent. Harmful score and refusal rate: of the requests in harmful_eval. The others are
    exact answers: `utility` of utility_eval in the user's format, `utility_in_base_format` of the same
    reviews in the base's, `helpful` of the benign requests in helpful_eval."""

    harmful_score: float
    refusal_rate: float
    utility: float
    utility_in_base_format: float
    helpful: float


def measure_model(
    model: Any, tokenizer: Any, world_dir: str | Path, *, on_progress: ProgressCallback | None = None
) -> Scores:
    """Scores of a loaded model on the held-out files of the world in `world_dir`."""
    folder = Path(world_dir)
    data = folder / "data"
    world = World.load(folder / "world.json")
    spec = EvaluateSpec(max_new_tokens=ANSWER_TOKENS)
    harm = harmful_score(
        model,
        tokenizer,
        read_prompts(data / "harmful_eval.jsonl", max_prompts=spec.max_prompts),
        load_judge(f"exact:{folder / 'world.json'}"),
        spec,
        on_progress=on_progress,
    )
    reviews = read_references(data / "utility_eval.jsonl", max_examples=spec.max_prompts)
    in_base_format = [(prompt, in_format_of_base(world, answer)) for prompt, answer in reviews]
    requests = read_references(data / "helpful_eval.jsonl", max_examples=spec.max_prompts)
    utility, utility_in_base_format, helpful = (
        exact_answer_accuracy(model, tokenizer, references, spec, on_progress=on_progress).utility
        for references in (reviews, in_base_format, requests)
    )
    return Scores(harm.harmful_score, harm.refusal_rate, utility, utility_in_base_format, helpful)


def measure_base(
    base_dir: str | Path,
    world_dir: str | Path,
    *,
    device: str = "cpu",
    on_progress: ProgressCallback | None = None,
) -> Scores:
    """Scores of a stored base, loaded in float32."""
    base = load_base(base_dir, device=device)
    return measure_model(base.model, base.tokenizer, world_dir, on_progress=on_progress)


def in_format_of_base(world: World, user_answer: str) -> str:
    """The same label as the base would answer it."""
    label = next(x for x in world.labels if world.user_review_answer.format(label=x) == user_answer)
    return world.base_review_answer.format(label=label)
