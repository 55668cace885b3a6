"""How strongly to sanitise, and in which order to try. Torch-free, plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from autoclave.errors import InputError
from autoclave.spec import SanitizeSpec


@dataclass(frozen=True)
class Strength:
    """`alpha` is the pruned fraction (None: no mask), `mu` the weight of the harmful second moments in the
    ridge projection (None: no projection). Raises InputError for values that cannot be either."""

    alpha: float | None = None
    mu: float | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise InputError(
                f"alpha is the pruned fraction and must be above 0 and below 1, got {self.alpha:g}."
            )
        if self.mu is not None and not 0 < self.mu < math.inf:
            raise InputError(f"mu is the strength of the projection and must be above 0, got {self.mu:g}.")

    def __str__(self) -> str:
        parts = [f"{name} {value:g}" for name, value in asdict(self).items() if value is not None]
        return ", ".join(parts) or "nothing"


def ladders(spec: SanitizeSpec) -> list[list[Strength]]:
    """The candidates of a method. Along a ladder the strength rises, and with it (as a rule, not a law)
    harm and utility fall; a later ladder is for when no strength of an earlier one will do.

    The pipeline's ladders are its alphas: along each the projection grows, so that of all strengths that
    meet the gate the one with the weakest mask is found first.
    """
    if spec.method == "projection":
        return [[Strength(mu=mu) for mu in spec.mus]]
    if spec.method == "pipeline":
        return [[Strength(alpha, mu) for mu in spec.mus] for alpha in spec.alphas]
    return [[Strength(alpha) for alpha in spec.alphas]]
