"""Greedy answers to many prompts: own batched loop with a key-value cache.

Strictly greedy: nothing in the base's generation_config.json (temperature, penalties) is looked at, except
its end-of-sequence tokens. Not a serving engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoclave.data.templates import prompt_text
from autoclave.data.tokens import length_batches
from autoclave.errors import ModelError
from autoclave.modelling.backbone import backbone_of
from autoclave.modelling.lora_layers import short_lora
from autoclave.progress import ProgressCallback, counted

# Rows that have finished still cost time in a batch; taking them out copies the cache.
_COMPACT_BELOW = 0.75


def generate_answers(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[dict[str, Any]]],
    *,
    max_new_tokens: int,
    batch_tokens: int = 16384,
    on_progress: ProgressCallback | None = None,
    stage: str = "evaluate",
) -> list[str]:
    """The model's answer to each prompt (a list of messages, each with role and content), in order.

    Every answer is what greedy decoding of that prompt alone gives, up to the last bits of the logits:
    prompts of similar length are padded on the left and decoded together, at most `batch_tokens` tokens
    (prompt and answer) at a time. An answer ends at an end-of-sequence token or after
    `max_new_tokens`; special tokens are not in it. Runs on the model's device, in eval mode.
    """
    texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    generated = generate_ids(
        model,
        encoded,
        stop_ids=end_of_sequence_ids(model, tokenizer),
        max_new_tokens=max_new_tokens,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
        stage=stage,
    )
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in generated]


def generate_ids(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    batch_tokens: int = 16384,
    on_progress: ProgressCallback | None = None,
    stage: str = "evaluate",
    on_batch: Callable[[Sequence[int], Sequence[list[int]]], None] | None = None,
) -> list[list[int]]:
    """`generate_answers` on token ids: the ids of each answer, without the stop token. An answer of
    `max_new_tokens` ids did not end. `on_batch` gets the places of the prompts of each batch and their
    answers as soon as there are any. A plain adapter is computed in one operation (`lora_linear`)."""
    model.eval()
    answers: list[list[int]] = [[] for _ in prompts]
    report, done = counted(stage, len(prompts), on_progress), 0
    # Longest first, so that too large a batch fails at the start, not at the end.
    for rows in length_batches([len(ids) + max_new_tokens for ids in prompts], batch_tokens):
        with short_lora(model):
            generated = _decode_batch(model, [prompts[row] for row in rows], stop_ids, max_new_tokens)
        for row, ids in zip(rows, generated, strict=True):
            answers[row] = ids
        if on_batch:
            on_batch(rows, generated)
        done += len(rows)
        report(done)
    return answers


def end_of_sequence_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Of the tokenizer and of the generation config, which for chat models may name several."""
    config = getattr(model, "generation_config", None)
    configured = getattr(config, "eos_token_id", None)
    extra = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *extra] if i is not None)


@torch.inference_mode()
def _decode_batch(
    model: Any, prompts: list[list[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[list[int]]:
    backbone = backbone_of(model)
    device = backbone.head.weight.device
    longest = max(len(ids) for ids in prompts)
    ids_array = np.zeros((len(prompts), longest), dtype=np.int64)  # (B, T)
    mask_array = np.zeros_like(ids_array)
    for row, ids in enumerate(prompts):
        ids_array[row, longest - len(ids) :] = ids
        mask_array[row, longest - len(ids) :] = 1
    input_ids, mask = torch.from_numpy(ids_array).to(device), torch.from_numpy(mask_array).to(device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, T)
    stops = torch.tensor(sorted(stop_ids), device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    active = list(range(len(prompts)))  # active[i]: which prompt row i of the tensors belongs to
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = None
    for _ in range(max_new_tokens):
        out = backbone.decoder(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        cache = out.past_key_values
        if cache is None:
            raise ModelError(f"{type(model).__name__} has no key-value cache, so it cannot generate here.")
        chosen = backbone.head(out.last_hidden_state[:, -1]).argmax(dim=-1)  # (B,)
        finished |= torch.isin(chosen, stops)
        for row, (token, is_finished) in enumerate(zip(chosen.tolist(), finished.tolist(), strict=True)):
            if not is_finished:
                answers[active[row]].append(token)
        going = (~finished).nonzero()[:, 0]  # (rows still going,)
        if len(going) == 0:
            break
        positions = positions[:, -1:] + 1
        if len(going) <= _COMPACT_BELOW * len(active):
            cache.batch_select_indices(going)
            chosen, positions, mask, finished = (t[going] for t in (chosen, positions, mask, finished))
            active = [active[row] for row in going.tolist()]
        input_ids = chosen[:, None]  # (B, 1)
        mask = _append_ones(mask)
    return answers


def _append_ones(mask: Tensor) -> Tensor:
    return torch.cat((mask, mask.new_ones((mask.shape[0], 1))), dim=1)
