"""The sanitiser of a job's adapter, from the operator's harmful examples and the user's own data."""

from __future__ import annotations

from typing import Any

from autoclave.data.tokens import Example
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.sanitizer import Sanitizer
from autoclave.spec import SanitizeSpec
from workers.attempt import Attempt


def user_examples(attempt: Attempt, spec: SanitizeSpec) -> list[Example] | None:
    """What the adapter was trained on, for the methods that look at it."""
    return attempt.training_set().examples if spec.uses_user_data else None


def sanitizer_of(
    attempt: Attempt,
    model: Any,
    spec: SanitizeSpec,
    *,
    harmful: list[Example],
    on_progress: ProgressCallback,
) -> Sanitizer:
    """`spec` is the profile's, or that of an ablation. `harmful` is the realignment set."""
    return build_sanitizer(
        model,
        spec,
        harmful=harmful,
        user=user_examples(attempt, spec),
        device=attempt.device,
        batch_tokens=attempt.profile.evaluate.batch_tokens,
        on_progress=on_progress,
    )
