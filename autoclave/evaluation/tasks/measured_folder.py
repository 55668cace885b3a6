"""Tasks on a base, alone or with an adapter, from folders: what `autoclave task` prints."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from autoclave.data.tokens import IGNORED
from autoclave.errors import InputError
from autoclave.evaluation.generate import generate_answers
from autoclave.evaluation.tasks.chat_endpoint import ChatEndpoint, ChatEndpointSpec
from autoclave.evaluation.tasks.lm_eval_tasks import import_lm_eval, read_results, task_options
from autoclave.evaluation.tasks.pairwise import Pair, compare, instruction_of
from autoclave.evaluation.utility import encode_references, held_out_loss, read_references
from autoclave.hashing import file_sha256
from autoclave.modelling.adapters import WEIGHTS_FILE, load_adapter
from autoclave.modelling.bases import LoadedBase, default_dtype, load_base, resolve_device
from autoclave.progress import ProgressCallback
from autoclave.spec import EvaluateSpec

JOURNAL_FILE = "verdicts.jsonl"
RESULT_FILE = "result.json"


def pairwise_folder(
    base_dir: str | Path,
    adapter_dir: str | Path | None,
    data_file: str | Path,
    out_dir: str | Path,
    *,
    endpoint: ChatEndpointSpec,
    spec: EvaluateSpec,
    device: str | None = None,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Any]:
    """Answers the conversations of chat JSONL and has each answer compared with the last message there.

    `out_dir` keeps answers and verdicts: a run that failed in the middle goes on. Raises InputError and its
    subclasses; an endpoint without its key before anything is loaded.
    """
    asked = ChatEndpoint(endpoint)
    device = resolve_device(device)
    references = read_references(data_file, max_examples=spec.max_prompts)
    base, model, digests = _loaded(base_dir, adapter_dir, device)
    digests["data"] = file_sha256(data_file)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    made_of = {**digests, "max_new_tokens": spec.max_new_tokens, "max_prompts": spec.max_prompts}
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = out / f"answers-{key}.json"
    if not file.is_file():
        answers = generate_answers(
            model,
            base.tokenizer,
            [prompt for prompt, _ in references],
            max_new_tokens=spec.max_new_tokens,
            batch_tokens=spec.batch_tokens,
            on_progress=on_progress,
        )
        _write(file, answers)
    given = json.loads(file.read_text(encoding="utf-8"))
    pairs = [
        Pair(instruction_of(prompt), answer, reference)
        for answer, (prompt, reference) in zip(given, references, strict=True)
    ]
    compared = compare(pairs, asked, out / JOURNAL_FILE, on_progress=on_progress)
    result = {**compared, "max_new_tokens": spec.max_new_tokens, "device": device, "sha256": digests}
    _write(out / RESULT_FILE, result)
    return result


def loss_folder(
    base_dir: str | Path,
    adapter_dir: str | Path | None,
    data_file: str | Path,
    *,
    max_examples: int,
    max_seq_length: int,
    batch_tokens: int = 8192,
    device: str | None = None,
) -> dict[str, Any]:
    """Mean cross entropy, nats per token, of the last messages of chat JSONL, and its exponential."""
    device = resolve_device(device)
    read_references(data_file, max_examples=max_examples)
    base, model, digests = _loaded(base_dir, adapter_dir, device)
    examples = encode_references(
        base.tokenizer, data_file, max_examples=max_examples, max_seq_length=max_seq_length
    )
    if not examples:
        raise InputError(f"{data_file}: no answer begins within {max_seq_length} tokens; raise the length.")
    loss = held_out_loss(model, examples, device=device, batch_tokens=batch_tokens)
    return {
        "held_out_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "num_examples": len(examples),
        "num_tokens": sum(int((example.labels[1:] != IGNORED).sum()) for example in examples),
        "device": device,
        "sha256": {**digests, "data": file_sha256(data_file)},
    }


def lm_eval_folder(
    base_dir: str | Path,
    adapter_dir: str | Path | None,
    tasks: list[str],
    *,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat_template: bool = False,
    include_path: str | Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Tasks of the package lm-eval, by its documented Python interface, and those of `include_path`, a folder
    of task files (YAML). The adapter is merged into the base in memory first, so that the package sees a
    plain model. Raises InputError if it is not installed, for tasks that it does not know, and for data that
    it cannot get."""
    package, wrapper = import_lm_eval()
    options = task_options(include_path)
    device = resolve_device(device)
    base, model, digests = _loaded(base_dir, adapter_dir, device)
    plain = model.merge_and_unload() if adapter_dir else model
    try:
        found = package.simple_evaluate(
            model=wrapper(pretrained=plain, tokenizer=base.tokenizer, batch_size=batch_size),
            tasks=tasks,
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=batch_size,
            apply_chat_template=chat_template,
            log_samples=False,
            **options,
        )
    except (KeyError, ValueError) as error:
        raise InputError(f"lm-eval refuses the tasks {', '.join(tasks)}: {error}") from error
    except OSError as error:
        raise InputError(
            f"lm-eval cannot get at the data of {', '.join(tasks)}: {error}. They come from a hub unless "
            "they are in its cache, or from the files that the task names."
        ) from error
    return {
        "tasks": read_results(found),
        "limit": limit,
        "chat_template": chat_template,
        "device": device,
        "sha256": digests,
    }


def _loaded(
    base_dir: str | Path, adapter_dir: str | Path | None, device: str
) -> tuple[LoadedBase, Any, dict[str, str | None]]:
    base = load_base(base_dir, dtype=default_dtype(device), device=device)
    model = load_adapter(base, adapter_dir) if adapter_dir else base.model
    digests = {
        "base": base.sha256,
        "adapter": file_sha256(Path(adapter_dir) / WEIGHTS_FILE) if adapter_dir else None,
    }
    return base, model, digests


def _write(file: Path, value: Any) -> None:
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)
