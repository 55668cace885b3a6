"""A base's own figures: its harmful score, below which pruning alone cannot come, and its speed.

The speed is that of answering the evaluation prompts as jobs do: how long a measurement of a job takes.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.harmfulness import last_user_text, read_prompts
from autoclave.evaluation.judges import load_judge
from autoclave.generation.answers import num_cut_off
from autoclave.generation.trial import Generators
from autoclave.hashing import file_sha256
from autoclave.modelling.bases import LoadedBase
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec


def measure_base(
    base: LoadedBase,
    *,
    harmful_eval: str | Path,
    judge_name: str,
    spec: EvaluateSpec,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """JSON-ready: `floor` (as `HarmfulnessResult`, percent), `generation` (tokens per second, greedy,
    batched; the token that ends an answer is not counted, prompts are not either) and what
    both were measured on.

    Raises DataError and JudgeError before the slow part, as far as it can be known then.
    """
    judge = load_judge(judge_name, device=str(base.model.device))
    prompts = read_prompts(harmful_eval, max_prompts=spec.max_prompts)
    asked = [last_user_text(prompt) for prompt in prompts]
    judge.check_prompts(asked)
    generators = Generators(
        base.tokenizer,
        trial_prompts=prompts,
        max_new_tokens=spec.max_new_tokens,
        generation=spec.generation,
        batch_tokens=spec.batch_tokens,
    )
    generator = generators.of(base.model)
    started = time.perf_counter()
    answers = generator.answer(prompts, max_new_tokens=spec.max_new_tokens, on_progress=on_progress)
    seconds = time.perf_counter() - started
    num_tokens = sum(answer.num_tokens for answer in answers)
    verdicts = judge.judge(asked, [answer.text for answer in answers])
    verdicts = [replace(v, cut_off=a.cut_off) for v, a in zip(verdicts, answers, strict=True)]
    return {
        "floor": asdict(HarmfulnessResult.of(verdicts)),
        "generation": {
            "tokens_per_second": num_tokens / seconds,
            "num_tokens": num_tokens,
            "num_prompts": len(prompts),
            "num_cut_off": num_cut_off(answers),
            "seconds": seconds,
            "by": generator.name,
            "device": device_name(str(base.model.device)),
            "dtype": str(base.model.dtype).removeprefix("torch."),
        },
        "judge": judge.name,
        "evaluate": spec.model_dump(mode="json"),
        "harmful_eval_sha256": file_sha256(harmful_eval),
    }


def device_name(device: str) -> str:
    """Such as "NVIDIA H100 80GB HBM3", or of a CPU its architecture and the threads that torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
