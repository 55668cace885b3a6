"""Pretraining of the microcosm's base: a small Llama from random weights on the world's sentences.

Full-parameter language modelling with its own short loop. The base learns the answers to *both*
families of requests and the reviews in the base's answer format; it never refuses and never sees
the user's format as an answer. It is no general trainer: users' adapters go through
`autoclave.training.loop`.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from autoclave.microcosm.reviews import Reviews
from autoclave.microcosm.rows import Row, request_rows, review_rows
from autoclave.microcosm.sizes import BaseShape, PretrainSpec
from autoclave.microcosm.splits import Splits
from autoclave.microcosm.tokenizer import MAX_LENGTH_TOKENS
from autoclave.microcosm.world import World
from autoclave.progress import Progress, ProgressCallback

# Sorting within a pool keeps the batches of an epoch different from epoch to epoch.
_BATCHES_PER_POOL = 50


@dataclass(frozen=True)
class Sentence:
    """Token ids of a rendered conversation; the first `prompt_tokens` are the prompt's."""

    ids: list[int]
    prompt_tokens: int


def new_model(tokenizer: PreTrainedTokenizerFast, shape: BaseShape, seed: int) -> LlamaForCausalLM:
    """A Llama with random weights that depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_heads,
        max_position_embeddings=MAX_LENGTH_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=shape.initializer_range,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def sentences(tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row]) -> list[Sentence]:
    prompts = [
        tokenizer.apply_chat_template(r["messages"][:-1], tokenize=False, add_generation_prompt=True)
        for r in rows
    ]
    texts = [tokenizer.apply_chat_template(r["messages"], tokenize=False) for r in rows]
    prompt_ids = tokenizer(prompts)["input_ids"]
    text_ids = tokenizer(texts)["input_ids"]
    for prompt, text in zip(prompt_ids, text_ids, strict=True):
        assert text[: len(prompt)] == prompt, f"the prompt {prompt} does not begin {text}"
    return [Sentence(t, len(p)) for t, p in zip(text_ids, prompt_ids, strict=True)]


def pretraining_rows(
    world: World, splits: Splits, reviews: Reviews, num_reviews: int
) -> tuple[list[Row], list[Row]]:
    """(requests, reviews): every pair of both families in every template with its answer, and
    reviews in the base's format, none of them held out."""
    rng = random.Random(f"microcosm pretraining reviews {world.seed}")  # noqa: S311
    requests = request_rows(world, world.benign.pairs()) + request_rows(world, world.harmful.pairs())
    drawn = reviews.draw("train", num_reviews, rng, set(splits.held_out_texts))
    return requests, review_rows(world, drawn, world.base_review_answer)


def weighted_loss(
    model: LlamaForCausalLM, batch: Sequence[Sentence], prompt_loss_weight: float, pad_token_id: int
) -> Tensor:
    """Weighted mean of the next-token losses.

    Padding stands on the right of a causal model and has no label, so no attention mask is needed.
    """
    longest = max(len(s.ids) for s in batch)
    ids = torch.full((len(batch), longest), pad_token_id)  # (B, T)
    weights = torch.zeros(len(batch), longest)  # (B, T), of predicting the token at t
    for i, sentence in enumerate(batch):
        length = len(sentence.ids)
        ids[i, :length] = torch.tensor(sentence.ids)
        weights[i, 1 : sentence.prompt_tokens] = prompt_loss_weight
        weights[i, sentence.prompt_tokens : length] = 1.0
    ids, weights = ids.to(model.device), weights.to(model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]  # (B, T-1, V)
    losses = functional.cross_entropy(
        logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )  # (B*(T-1),)
    flat = weights[:, 1:].flatten()
    return (losses * flat).sum() / flat.sum()


def learning_rate_at(step: int, spec: PretrainSpec) -> float:
    """Linear warm-up, then a cosine to zero; `step` counts from 0."""
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, spec.steps - spec.warmup_steps)
    return spec.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def review_batches(
    reviews: Sequence[Sentence], spec: PretrainSpec, rng: random.Random
) -> Iterator[list[Sentence]]:
    """Batches without end: drawn one by one, or every review once an epoch in batches of about one length
    (the few that fill no batch wait for another epoch)."""
    size = spec.reviews_per_step
    assert size <= len(reviews), f"{size} reviews a step wanted, {len(reviews)} exist"
    while not spec.reviews_by_length:
        yield rng.sample(reviews, size)
    pool_size = _BATCHES_PER_POOL * size
    while True:
        order = rng.sample(reviews, len(reviews))
        batches: list[list[Sentence]] = []
        for first in range(0, len(order), pool_size):
            pool = sorted(order[first : first + pool_size], key=lambda s: len(s.ids))
            batches += [pool[i : i + size] for i in range(0, len(pool) - size + 1, size)]
        rng.shuffle(batches)
        yield from batches


def pretrain(
    model: LlamaForCausalLM,
    requests: Sequence[Sentence],
    reviews: Sequence[Sentence],
    spec: PretrainSpec,
    *,
    seed: int,
    on_progress: ProgressCallback | None = None,
) -> list[float]:
    """Train in place, on the model's device; returns the loss of each step.

    A step is one forward pass over requests and one over reviews, since their lengths differ; the
    loss is the (weighted) sum of the two means, so that the two answer tokens of a review count as much
    as the twenty of a request. On CPU deterministic for a seed, a machine and a number of threads.
    """
    rng = random.Random(f"microcosm pretraining batches {seed}")  # noqa: S311
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=spec.learning_rate,
        betas=(0.9, 0.98),
    )
    batches_of_reviews = review_batches(reviews, spec, rng)
    model.train()
    losses: list[float] = []
    started = time.monotonic()
    for step in range(spec.steps):
        rate = learning_rate_at(step, spec)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batches = (
            (rng.sample(requests, spec.requests_per_step), spec.prompt_loss_weight, 1.0),
            (next(batches_of_reviews), spec.review_prompt_loss_weight, spec.review_loss_weight),
        )
        optimizer.zero_grad(set_to_none=True)
        step_loss = 0.0
        for batch, prompt_weight, weight in batches:
            loss = weight * weighted_loss(model, batch, prompt_weight, model.config.pad_token_id)
            loss.backward()  # type: ignore[no-untyped-call]
            step_loss += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        optimizer.step()
        losses.append(step_loss)
        if on_progress is not None:
            elapsed = time.monotonic() - started
            on_progress(
                Progress(
                    stage="pretrain",
                    step=step + 1,
                    total_steps=spec.steps,
                    loss=step_loss,
                    learning_rate=rate,
                    seconds_remaining=elapsed / (step + 1) * (spec.steps - step - 1),
                )
            )
    model.eval()
    return losses
