"""Measuring a base, alone or with an adapter, from folders: what `autoclave evaluate` prints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from autoclave.errors import InputError
from autoclave.evaluation.answer_rules import rule_named
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.harmfulness import judged_by, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.evaluation.utility import read_references, right_by, utility_of
from autoclave.generation.answers import Generator
from autoclave.generation.endpoint import EndpointGenerator
from autoclave.generation.kept_answers import KeptAnswers
from autoclave.generation.trial import Generators
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, load_adapter
from autoclave.modelling.bases import default_dtype, load_base, load_tokenizer, resolve_device
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec


def evaluate_folder(
    base_dir: str | Path,
    adapter_dir: str | Path | None = None,
    *,
    prompts_file: str | Path | None = None,
    judge_name: str | None = None,
    utility_file: str | Path | None = None,
    answer_rule: str = "exact",
    answers_from: str | None = None,
    keep_answers: str | Path | None = None,
    spec: EvaluateSpec | None = None,
    device: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """One JSON-ready object. Rates are in percent; what was not asked for is null. `harmful_score` needs
    `prompts_file` and `judge_name`, `utility` needs `utility_file` (right by `answer_rule`, a name of
    `answer_rules.RULES`); at least one of them must be asked for. With `answers_from`, the URL of an endpoint
    that serves the model, nothing is loaded but the tokenizer of the base (`generation.endpoint`).
    `keep_answers` names a folder in which answers are kept as they come: the same call after a failure asks
    only what is missing. Raises InputError and its subclasses before anything slow, as far as it can be
    known then; a failure in the middle gives no result.
    """
    spec = spec or EvaluateSpec()
    if (prompts_file is None) != (judge_name is None):
        raise InputError("--prompts and --judge belong together: give both, or neither.")
    if prompts_file is None and utility_file is None:
        raise InputError("nothing to measure: give --prompts with --judge, or --utility, or both.")
    if answers_from is not None and adapter_dir is not None:
        raise InputError(
            "an endpoint answers with what it serves, and --adapter cannot change that: leave it out, and "
            "name the adapter's model after #model= in --answers-from."
        )
    device = resolve_device(device)
    judge = load_judge(judge_name, device=device) if judge_name else None
    prompts = read_prompts(prompts_file, max_prompts=spec.max_prompts) if prompts_file else []
    references = read_references(utility_file, max_examples=spec.max_prompts) if utility_file else []
    rule_named(answer_rule, [reference for _, reference in references])
    adapter_sha256 = file_sha256(Path(adapter_dir) / WEIGHTS_FILE) if adapter_dir else None
    why_static = None
    if answers_from is not None:
        generator: Generator = EndpointGenerator(answers_from, load_tokenizer(base_dir))
        base_sha256, dtype = folder_sha256(base_dir), None
    else:
        base = load_base(base_dir, dtype=default_dtype(device), device=device)
        model = load_adapter(base, adapter_dir) if adapter_dir else base.model
        generators = Generators(
            base.tokenizer,
            trial_prompts=prompts or [prompt for prompt, _ in references],
            max_new_tokens=spec.max_new_tokens,
            generation=spec.generation,
            batch_tokens=spec.batch_tokens,
        )
        generator, why_static = generators.of(model), generators.reason
        base_sha256, dtype = base.sha256, str(base.model.dtype).removeprefix("torch.")
    of = {"base": base_sha256, "adapter": adapter_sha256, "dtype": dtype}

    def kept(name: str) -> Generator:
        return generator if keep_answers is None else KeptAnswers(generator, Path(keep_answers) / name, of=of)

    result: dict[str, Any] = dict.fromkeys(
        (
            "harmful_score",
            "harmful_score_interval",
            "refusal_rate",
            "refusal_rate_interval",
            "coherence_rate",
            "coherence_rate_interval",
            "num_prompts",
            "num_undecided",
            "category_scores",
            "num_cut_off",
            "utility",
            "utility_interval",
            "num_examples",
        )
    )
    if judge:
        verdicts = judged_by(kept("prompts.jsonl"), prompts, judge, spec, on_progress=on_progress)
        result |= asdict(HarmfulnessResult.of(verdicts))
    if references:
        right = right_by(
            kept("utility.jsonl"), references, spec, answer_rule=answer_rule, on_progress=on_progress
        )
        result |= asdict(utility_of(right))
    hashed = {"prompts": prompts_file, "utility": utility_file}
    return result | {
        "judge": judge.name if judge else None,
        "answer_rule": answer_rule if references else None,
        "max_new_tokens": spec.max_new_tokens,
        "answers_from": generator.name,
        "why_static_batches": why_static,
        "device": None if answers_from else device,
        "dtype": dtype,
        "sha256": {
            "base": base_sha256,
            "adapter": adapter_sha256,
            **{name: file_sha256(file) if file else None for name, file in hashed.items()},
        },
    }
