"""Antidote with the user's task protected: prune what matters on harmful examples and not on the user's.

Two ways to say so, neither of them the authors' (docs/antidote.md 7):

- set difference (after Wei et al., arXiv 2402.05162, who prune dense models): Antidote's scores, but never
  an entry that is among the top fraction of the same scores on the user's own data;
- normalised difference: S_harmful / mean(S_harmful) - S_user / mean(S_user).
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from autoclave.sanitizing.activations import ActivationNorm
from autoclave.sanitizing.masks import select
from autoclave.sanitizing.sanitizer import Edit, Sanitizer
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import MaskRule


class ProtectedAntidote(Sanitizer):
    """`norms` are those on the realignment set."""

    method = "antidote-protected"

    def __init__(
        self,
        peft_model: Any,
        harmful: dict[str, ActivationNorm],
        user: dict[str, ActivationNorm],
        *,
        rule: MaskRule = "row",
        protection: Literal["set-difference", "normalised-difference"] = "normalised-difference",
        protected_fraction: float = 0.1,
    ) -> None:
        super().__init__(peft_model)
        self._rule, self.norms = rule, harmful
        on_harmful, on_user = self._scores(harmful), self._scores(user)
        if protection == "set-difference":
            self._protected = select(on_user, protected_fraction, rule)
            self._ranking = {
                name: scores.masked_fill(self._protected[name], -1.0) for name, scores in on_harmful.items()
            }
        else:
            self._protected = {}
            self._ranking = {
                name: _normalised(on_harmful[name], rule) - _normalised(on_user[name], rule)
                for name in on_harmful
            }

    def edit(self, strength: Strength) -> Edit:
        assert strength.alpha is not None, strength
        masks = select(self._ranking, strength.alpha, self._rule)
        # A row may hold fewer unprotected entries than alpha asks for; the protected ones stay then, too.
        if self._protected:
            masks = {name: mask & ~self._protected[name] for name, mask in masks.items()}
        return Edit({name: self.originals[name].masked_fill(mask, 0) for name, mask in masks.items()}, masks)

    def _scores(self, norms: dict[str, ActivationNorm]) -> dict[str, Tensor]:
        return {
            name: wanda_scores(weight, norms[name].norm.to(weight.device))
            for name, weight in self.originals.items()
        }


def _normalised(scores: Tensor, rule: MaskRule) -> Tensor:
    """Scores over their mean: of the row where rows compete, else of the matrix. All-zero ones stay zero."""
    mean = scores.mean(dim=1, keepdim=True) if rule == "row" else scores.mean()
    return scores / mean.clamp(min=1e-30)
