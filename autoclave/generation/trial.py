"""Which way a model in this process answers: static batches, or continuous ones if they answer the same.

Tried, not looked up: a few prompts are answered both ways. In float32 the tokens must be equal. In half
precision one rounding can turn a tie, in static batches as well as in continuous ones (docs/generation.md):
there the answers may part where both tokens are as good as equally likely to the model alone, nowhere else.

Decided once for all models that are compared, on the base without its adapter: a figure before and one after
must not differ because their answers were made in two ways, nor may those of two adapters or two commands.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from autoclave.data.templates import prompt_text
from autoclave.evaluation.generate import end_of_sequence_ids, generate_ids
from autoclave.generation.answers import Generator, Prompt
from autoclave.generation.continuous_batches import ContinuousBatches, continuous_ids, flash_attention
from autoclave.generation.static_batches import StaticBatches
from autoclave.modelling.backbone import backbone_of
from autoclave.spec import Generation

logger = logging.getLogger(__name__)

NUM_TRIAL_PROMPTS = 8
TRIAL_TOKENS = 48
_HALF = (torch.bfloat16, torch.float16)
_ROUNDINGS = 4
"""Two logits of half precision are tied within so many roundings of the largest one."""


class Generators:
    """Makes the generator of each model of one run. `name` and `reason` are None before the first one is
    made; then the name of the way, and why it is static batches."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        trial_prompts: Sequence[Prompt],
        max_new_tokens: int,
        generation: Generation = "auto",
        batch_tokens: int = 16384,
        around: Callable[[Generator, Any], Generator] | None = None,
    ) -> None:
        """`around` puts another generator in front of that of a model, such as one that keeps answers."""
        self._tokenizer, self._generation, self._batch_tokens = tokenizer, generation, batch_tokens
        self._trial_prompts = list(trial_prompts[:NUM_TRIAL_PROMPTS])
        self._max_new_tokens = min(max_new_tokens, TRIAL_TOKENS)
        self._around = around
        self.name: str | None = None
        self.reason: str | None = None

    def of(self, model: Any) -> Generator:
        if self.name is None:
            self.reason = self._why_static(model)
            self.name = ContinuousBatches.name if self.reason is None else StaticBatches.name
            logger.info("answers by %s%s", self.name, f": {self.reason}" if self.reason else "")
        way = StaticBatches if self.name == StaticBatches.name else ContinuousBatches
        generator: Generator = way(model, self._tokenizer, batch_tokens=self._batch_tokens)
        return generator if self._around is None else self._around(generator, model)

    def kept_by(self, around: Callable[[Generator, Any], Generator]) -> Generators:
        """The same choice, still to be made if it was not, with something in front of each generator."""
        others = Generators(
            self._tokenizer,
            trial_prompts=self._trial_prompts,
            max_new_tokens=self._max_new_tokens,
            generation=self._generation,
            batch_tokens=self._batch_tokens,
            around=around,
        )
        others.name, others.reason = self.name, self.reason
        return others

    def _why_static(self, model: Any) -> str | None:
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        reason = _not_tried(causal, self._generation)
        if reason is not None:
            return reason
        try:
            texts = [prompt_text(self._tokenizer, prompt) for prompt in self._trial_prompts]
            encoded = self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            stop_ids = end_of_sequence_ids(model, self._tokenizer)
            with model.disable_adapter() if hasattr(model, "get_base_model") else nullcontext():
                return differing(model, encoded, stop_ids=stop_ids, max_new_tokens=self._max_new_tokens)
        except Exception as error:  # whatever it is, the run does not need continuous batches
            logger.warning("continuous batches failed their trial", exc_info=True)
            return f"continuous batches failed their trial ({type(error).__name__})"


def differing(
    model: Any, prompts: Sequence[list[int]], *, stop_ids: frozenset[int], max_new_tokens: int
) -> str | None:
    """Answers the prompts both ways; None if continuous batches give what static ones do, else how many
    answers are others. Room is made for half of the prompts at a time, so that some have to wait."""
    if not prompts:
        return "there is no prompt to try continuous batches on"
    total = sum(len(ids) + max_new_tokens for ids in prompts)
    static = generate_ids(model, prompts, stop_ids=stop_ids, max_new_tokens=max_new_tokens)
    continuous = continuous_ids(
        model, prompts, stop_ids=stop_ids, max_new_tokens=max_new_tokens, batch_tokens=max(1, total // 2)
    )
    is_half = backbone_of(model).head.weight.dtype in _HALF
    others = sum(
        one != other and not (is_half and _parts_at_a_tie(model, prompt, one, other, stop_ids))
        for prompt, one, other in zip(prompts, static, continuous, strict=True)
    )
    return f"continuous batches gave {others} of {len(prompts)} other answers" if others else None


def _not_tried(causal: Any, generation: Generation) -> str | None:
    if generation == "static":
        return "the setting says so"
    has_flash = flash_attention(causal) is not None
    if generation == "auto" and causal.device.type != "cuda":
        return "continuous batches are for CUDA"
    if generation == "auto" and not has_flash:
        # With torch's kernel they may be as fast as static ones; nobody has measured that.
        return "no flash attention is installed"
    if causal.config._attn_implementation == "eager" and not has_flash:
        return "the paged form of plain attention leaves out soft caps"
    return None


@torch.inference_mode()
def _parts_at_a_tie(
    model: Any, prompt: list[int], one: list[int], other: list[int], stop_ids: frozenset[int]
) -> bool:
    """Where two answers part, to the model alone neither next token is worse than the best by more than
    rounding."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    place = min(len(one), len(other)) if same is None else same
    backbone = backbone_of(model)
    ids = torch.tensor([prompt + one[:place]], device=backbone.head.weight.device)  # (1, T)
    output = backbone.decoder(input_ids=ids, use_cache=False)
    logits = backbone.head(output.last_hidden_state[0, -1])  # (V,)
    tolerance = _ROUNDINGS * torch.finfo(logits.dtype).eps * logits.abs().max().float()
    lowest = logits.max().float() - tolerance
    # An answer that is over chose one of the tokens that end it.
    chosen = [[answer[place]] if place < len(answer) else sorted(stop_ids) for answer in (one, other)]
    return all(tokens and bool(logits[tokens].max().float() >= lowest) for tokens in chosen)
