"""A base's own figures: its harmful score, below which pruning alone cannot come, and its speed.

The speed is that of answering the evaluation prompts as jobs do: how long a measurement of a job takes.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from autoclave.data.templates import prompt_text
from autoclave.evaluation.generate import end_of_sequence_ids, generate_ids
from autoclave.evaluation.harm_rates import HarmfulnessResult
from autoclave.evaluation.harmfulness import last_user_text, read_prompts
from autoclave.evaluation.judges import load_judge
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
    texts = [prompt_text(base.tokenizer, prompt) for prompt in prompts]
    encoded: list[list[int]] = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    started = time.perf_counter()
    generated = generate_ids(
        base.model,
        encoded,
        stop_ids=end_of_sequence_ids(base.model, base.tokenizer),
        max_new_tokens=spec.max_new_tokens,
        batch_tokens=spec.batch_tokens,
        on_progress=on_progress,
    )
    seconds = time.perf_counter() - started
    answers = [base.tokenizer.decode(ids, skip_special_tokens=True) for ids in generated]
    num_tokens = sum(map(len, generated))
    return {
        "floor": asdict(HarmfulnessResult.of(judge.judge(asked, answers))),
        "generation": {
            "tokens_per_second": num_tokens / seconds,
            "num_tokens": num_tokens,
            "num_prompts": len(prompts),
            "num_cut_off": sum(len(ids) == spec.max_new_tokens for ids in generated),
            "seconds": seconds,
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
