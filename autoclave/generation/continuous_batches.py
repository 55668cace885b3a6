"""The model in this process as a generator, by transformers' continuous batching: a prompt that has its
answer makes room for the next one at once, and nothing is padded.

The schedule follows from the prompts and `batch_tokens` alone: every prompt is queued before the first step,
the sizes of cache and batch are fixed here instead of being read off free memory, and steps do not overlap.
So the same call makes the same batches and gives the same tokens. Prefixes are not shared.

Attention goes over a paged cache, another one than in static batches: `trial.py` decides whether the answers
are the same. By the interface of transformers 5.23 (transformers/generation/continuous_batching); a version
that has another one fails the trial.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from autoclave.data.templates import prompt_text
from autoclave.errors import ModelError
from autoclave.evaluation.generate import end_of_sequence_ids
from autoclave.generation import paged_attention
from autoclave.generation.answers import Answer, OnAnswer, Prompt
from autoclave.modelling.lora_layers import short_lora
from autoclave.progress import ProgressCallback, counted

PAGE_TOKENS = 32
"""Cache is given out in pieces of so many tokens: half of one is wasted per prompt."""
_STEP_TOKENS = 2048
"""At most so many tokens in one pass: longer prompts are read in parts."""
_POLL_SECONDS = 0.1

# It writes to standard error by itself, and token ids of prompts at its lower levels.
logging.getLogger("ContinuousBatchingLogger").setLevel(logging.WARNING)


class ContinuousBatches:
    name = "continuous-batches"

    def __init__(self, model: Any, tokenizer: Any, *, batch_tokens: int = 16384) -> None:
        """`batch_tokens` bounds prompt and answer tokens in the cache at a time, as in `StaticBatches`; the
        longest prompt with its answer always fits."""
        self._model, self._tokenizer, self._batch_tokens = model, tokenizer, batch_tokens

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        """Raises ModelError where the library refuses the model, and what ended its thread if that died:
        there are no answers then."""
        texts = [prompt_text(self._tokenizer, prompt) for prompt in prompts]
        encoded: list[list[int]] = (
            self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        )
        answers: dict[int, Answer] = {}
        report = counted("evaluate", len(prompts), on_progress)

        def keep(place: int, ids: list[int]) -> None:
            text = self._tokenizer.decode(ids, skip_special_tokens=True)
            answers[place] = Answer(text, len(ids), cut_off=len(ids) == max_new_tokens)
            if on_answer:
                on_answer(place, answers[place])
            report(len(answers))

        continuous_ids(
            self._model,
            encoded,
            stop_ids=end_of_sequence_ids(self._model, self._tokenizer),
            max_new_tokens=max_new_tokens,
            batch_tokens=self._batch_tokens,
            on_ids=keep,
        )
        return [answers[place] for place in range(len(prompts))]


def continuous_ids(
    model: Any,
    prompts: Sequence[list[int]],
    *,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    batch_tokens: int = 16384,
    on_ids: Callable[[int, list[int]], None] | None = None,
) -> list[list[int]]:
    """As `evaluation.generate.generate_ids`: the ids of each answer without the stop token; one of
    `max_new_tokens` ids did not end. `on_ids` gets the place of a prompt and its ids, as they come."""
    answers: dict[int, list[int]] = {}
    if not prompts:
        return []
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.eval()
    with (
        short_lora(model),
        _paged(causal),
        _manager(causal, prompts, max_new_tokens, batch_tokens) as manager,
    ):
        # Longest first, as in static batches: what does not fit fails at the start.
        for place in sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place)):
            manager.add_request(
                prompts[place],
                request_id=str(place),
                max_new_tokens=max_new_tokens,
                eos_token_id=sorted(stop_ids),
            )
        manager.start()
        while len(answers) < len(prompts):
            result = manager.get_result(timeout=_POLL_SECONDS)
            if result is None and manager.is_running():
                continue
            if result is None or result.error is not None:
                manager.stop(block=True, hard_stop=True)
                raise _failure(manager, causal, result)
            place = int(result.request_id)
            ids = list(result.generated_tokens)
            answers[place] = ids[:-1] if ids and ids[-1] in stop_ids else ids
            if on_ids:
                on_ids(place, answers[place])
    return [answers[place] for place in range(len(prompts))]


def flash_attention(model: Any) -> str | None:
    """The name of the flash attention that is installed for this model's device and type of numbers. Never
    one that would be fetched from a hub."""
    if model.device.type != "cuda" or model.dtype not in (torch.bfloat16, torch.float16):
        return None
    if is_flash_attn_3_available():
        return "flash_attention_3"
    return "flash_attention_2" if is_flash_attn_2_available() else None


def attention_for(model: Any) -> str:
    """Flash attention where it is installed, else torch's kernel where it can be, else the model's own: of
    that the library takes sdpa as it is, under a mask over all prompts, and gives "eager" a paged form."""
    installed = flash_attention(model)
    if installed is not None:
        return installed
    own: str = model.config._attn_implementation
    is_half = model.dtype in (torch.bfloat16, torch.float16)
    # What the kernel cannot do (soft caps), models with plain attention may need.
    return paged_attention.NAME if own == "sdpa" and is_half and model.device.type == "cuda" else own


@contextmanager
def _paged(causal: Any) -> Iterator[None]:
    """Inside the block the model has the attention that goes best with a paged cache."""
    before, wanted = causal.config._attn_implementation, attention_for(causal)
    if wanted == paged_attention.NAME:
        causal.config._attn_implementation = wanted
    elif wanted != before:
        causal.set_attn_implementation(wanted)
    try:
        yield
    finally:
        if causal.config._attn_implementation != before:
            causal.config._attn_implementation = before


@contextmanager
def _manager(
    causal: Any, prompts: Sequence[list[int]], max_new_tokens: int, batch_tokens: int
) -> Iterator[Any]:
    lengths = [ceil((len(ids) + max_new_tokens) / PAGE_TOKENS) * PAGE_TOKENS for ids in prompts]
    cache_tokens = max(*lengths, min(batch_tokens, sum(lengths)))
    # As many as have room on average. Where that is too many, the library takes the youngest out for a while.
    at_once = max(1, min(len(prompts), cache_tokens * len(lengths) // sum(lengths)))
    config = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=ceil(cache_tokens / PAGE_TOKENS),
        max_batch_tokens=max(at_once, min(_STEP_TOKENS, sum(map(len, prompts)))),
        max_requests_per_batch=at_once,
        max_blocks_per_request=0,
        allow_block_sharing=False,
        use_async_batching=False,
        use_cuda_graph=False,
        auto_switch_to_flash=False,
        scheduler_type="fifo",
        safety_margin=0.0,
    )
    greedy = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=-1)
    try:
        manager = causal.init_continuous_batching(generation_config=greedy, continuous_batching_config=config)
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise ModelError(f"{type(causal).__name__} cannot be batched continuously: {error}") from error
    try:
        yield manager
    finally:
        if manager._generation_thread is not None:
            manager.stop(block=True, hard_stop=True)
        manager.destroy()


def _failure(manager: Any, causal: Any, result: Any) -> BaseException:
    """What ended the thread, so that a lack of memory is still seen as one."""
    fatal = manager.background_thread_status.fatal_error
    if isinstance(fatal, Exception):
        return fatal
    reason = "its thread ended" if result is None else result.error
    return RuntimeError(f"continuous batching of {type(causal).__name__} ended early: {reason}")
