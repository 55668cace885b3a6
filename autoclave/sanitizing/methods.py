"""From a name in the spec to the sanitiser of an adapter, with whatever passes it needs."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.activations import input_norms
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.method_table import ABOUT
from autoclave.sanitizing.pipeline import Pipeline
from autoclave.sanitizing.projection import Projection
from autoclave.sanitizing.protected import ProtectedAntidote
from autoclave.sanitizing.rewind import RewindingAntidote
from autoclave.sanitizing.sanitizer import Sanitizer
from autoclave.spec import SanitizeSpec

__all__ = ["ABOUT", "build_sanitizer", "sampled"]


def build_sanitizer(
    peft_model: Any,
    spec: SanitizeSpec,
    *,
    harmful: Sequence[Example],
    user: Sequence[Example] | None,
    device: str | torch.device,
    aligned: Mapping[str, Tensor] | None = None,
    batch_tokens: int = 8192,
    on_progress: ProgressCallback | None = None,
) -> Sanitizer:
    """`harmful` is the realignment set; `user` the user's training data as uploaded, of which at most
    `spec.max_user_examples` are read (a fixed sample). With `aligned`, the factors that fine-tuning began
    with, antidote sets back instead of pruning (`rewind`). Leaves the adapter as it is. Raises InputError
    for an empty set, or no user data where the method needs it."""
    assert aligned is None or spec.method == "antidote", spec.method
    if aligned is not None:
        norms = input_norms(
            peft_model,
            harmful,
            device=device,
            kind=spec.norm,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
        return RewindingAntidote(peft_model, norms, aligned, rule=spec.rule)
    if spec.method == "antidote":
        return Antidote.from_pass(
            peft_model,
            harmful,
            device=device,
            rule=spec.rule,
            kind=spec.norm,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
    if not user:
        raise InputError(
            f"the method {spec.method} compares harmful examples with the user's own: give the data that the "
            "adapter was trained on (--user-data), or choose the method antidote."
        )
    sample = sampled(user, spec.max_user_examples)
    if spec.method == "antidote-protected":
        on_harmful, on_user = (
            input_norms(
                peft_model,
                examples,
                device=device,
                kind=spec.norm,
                batch_tokens=batch_tokens,
                on_progress=on_progress,
            )
            for examples in (harmful, sample)
        )
        return ProtectedAntidote(
            peft_model,
            on_harmful,
            on_user,
            rule=spec.rule,
            protection=spec.protection,
            protected_fraction=spec.protected_fraction,
        )
    projection = Projection.from_pass(
        peft_model,
        harmful,
        sample,
        mus=spec.mus,
        ridge=spec.ridge,
        device=device,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    if spec.method == "projection":
        return projection
    return Pipeline(
        peft_model,
        projection,
        harmful,
        device=device,
        rule=spec.rule,
        kind=spec.norm,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )


def sampled(examples: Sequence[Example], most: int) -> Sequence[Example]:
    """At most `most` of them, always the same ones, in their order."""
    if len(examples) <= most:
        return examples
    chosen = random.Random("user examples").sample(range(len(examples)), most)  # noqa: S311
    return [examples[index] for index in sorted(chosen)]
