"""What was done to an adapter, as plain data and as files: `sanitization.json`, the masks and their norms."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autoclave import __version__
from autoclave.data.tokens import Example
from autoclave.sanitizing.activations import ActivationNorm
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.masks import RULES
from autoclave.sanitizing.methods import sampled
from autoclave.sanitizing.packed_masks import save_masks, save_norms
from autoclave.sanitizing.pipeline import Pipeline
from autoclave.sanitizing.protected import ProtectedAntidote
from autoclave.sanitizing.sanitizer import MatrixChange, Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec

RECORD_FILE = "sanitization.json"
MASKS_FILE = "masks.safetensors"
NORMS_FILE = "input_norms.safetensors"


def sanitization_record(
    spec: SanitizeSpec,
    strength: Strength,
    changes: dict[str, MatrixChange],
    *,
    harmful: Sequence[Example],
    user: Sequence[Example] | None,
) -> dict[str, Any]:
    """The part of `sanitization.json` that follows from the adapter and the examples alone.

    `changes` are what `Sanitizer.apply(strength)` returned, `harmful` and `user` what `build_sanitizer` was
    given. `pruned_fraction` is of all entries of all factors; it exceeds alpha, because counts round up.
    `sparsity` is the pruned fraction of one matrix, `layers` that of one decoder layer, by its number.
    `relative_change` is the Frobenius norm of the change of all factors over that of all factors. What
    does not belong to the method is None: `rule` and `norm` without a mask, `ridge` without a projection.
    """
    prunes = strength.alpha is not None
    protects = spec.method == "antidote-protected"
    looked_at = sampled(user, spec.max_user_examples) if user and spec.uses_user_data else None
    return {
        "method": spec.method,
        "alpha": strength.alpha,
        "mu": strength.mu,
        "rule": RULES[spec.rule] if prunes else None,
        "rule_name": spec.rule if prunes else None,
        "norm": spec.norm if prunes else None,
        "ridge": spec.ridge if strength.mu is not None else None,
        "protection": spec.protection if protects else None,
        "protected_fraction": spec.protected_fraction if protects else None,
        "realign_examples": len(harmful),
        "realign_tokens": sum(len(example) for example in harmful),
        "user_examples": len(looked_at) if looked_at is not None else None,
        "pruned": sum(change.pruned for change in changes.values()),
        "entries": sum(change.rows * change.cols for change in changes.values()),
        "pruned_fraction": _pruned_fraction(list(changes.values())),
        "relative_change": _relative_change(list(changes.values())),
        "matrices": {
            name: asdict(change) | {"sparsity": _pruned_fraction([change])}
            for name, change in changes.items()
        },
        "layers": {
            layer: _pruned_fraction([change for name, change in changes.items() if _layer(name) == layer])
            for layer in dict.fromkeys(map(_layer, changes))
        },
        "versions": {"autoclave": __version__} | {n: version(n) for n in ("torch", "transformers", "peft")},
    }


def write_masks(sanitizer: Sanitizer, strength: Strength, folder: Path) -> None:
    """The masks of the strength applied last, and the norms that their scores came from (`scoring_norms`).
    Writes neither file where nothing was pruned."""
    assert sanitizer.last_applied == strength, (sanitizer.last_applied, strength)
    if sanitizer.masks_of_last_apply:
        save_masks(sanitizer.masks_of_last_apply, folder / MASKS_FILE)
        save_norms(scoring_norms(sanitizer, strength), folder / NORMS_FILE)


def scoring_norms(sanitizer: Sanitizer, strength: Strength) -> dict[str, ActivationNorm]:
    """Norms on the realignment set behind the masks of a strength: of the trained adapter, for the pipeline
    of the projected one. Empty where nothing is pruned."""
    if isinstance(sanitizer, Antidote | ProtectedAntidote):
        return sanitizer.norms
    if isinstance(sanitizer, Pipeline):
        assert strength.mu is not None, strength
        return sanitizer.norms(strength.mu)
    return {}


def _pruned_fraction(changes: Sequence[MatrixChange]) -> float:
    return sum(c.pruned for c in changes) / sum(c.rows * c.cols for c in changes)


def _relative_change(changes: Sequence[MatrixChange]) -> float:
    whole = math.hypot(*(c.original_norm for c in changes))
    change = math.hypot(*(c.relative_change * c.original_norm for c in changes))
    return change / whole if whole > 0 else 0.0


def _layer(name: str) -> str:
    """Number of the decoder layer that a factor is in: the first number in its name."""
    number = re.search(r"\.(\d+)\.", name)
    return number[1] if number else "none"
