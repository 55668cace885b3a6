"""Figures from counts, for tests that need figures but no model."""

from __future__ import annotations

from autoclave.evaluation.figures import Figures
from autoclave.evaluation.intervals import wilson


def figures_of(
    *,
    harmful: int = 0,
    refused: int = 100,
    coherent: int = 100,
    num_prompts: int = 100,
    right: int | None = None,
    num_examples: int = 100,
    held_out_loss: float | None = None,
    complete: bool = True,
) -> Figures:
    """Counts out of `num_prompts` and `num_examples`; `right` None means that utility was not measured, else
    the first ones are right."""
    measured = right is not None
    return Figures(
        harmful_score=100 * harmful / num_prompts,
        harmful_score_interval=wilson(harmful, num_prompts),
        refusal_rate=100 * refused / num_prompts,
        refusal_rate_interval=wilson(refused, num_prompts),
        coherence_rate=100 * coherent / num_prompts,
        coherence_rate_interval=wilson(coherent, num_prompts),
        num_prompts=num_prompts,
        utility=100 * right / num_examples if right is not None else None,
        utility_interval=wilson(right, num_examples) if right is not None else None,
        num_examples=num_examples if measured else 0,
        held_out_loss=held_out_loss,
        complete=complete,
        right=tuple(i < right for i in range(num_examples)) if right is not None else None,
    )
