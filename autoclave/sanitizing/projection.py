"""Ridge projection: the adapter that acts as the user's on their data and does nothing on harmful examples.

For each adapted layer with update D = s B A, the D' that minimises

    E_user ||(D' - D) x||^2  +  mu * E_harmful ||D' x||^2  +  lambda * ||D'||^2

is D' = D C_u (C_u + mu C_h + lambda I)^-1, with C the second moments of the layer's input. The factor acts on
the right, so only A changes: rank, B and file layout stay, and the result does not depend on how D was split
into A and B. Not Antidote: nothing is pruned. docs/antidote.md 7 derives and discusses it.

C_h is the mean of two: harmful inputs as the adapted model sees them and as its bare base does. Once the
update is gone from the early layers, the later ones see something between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoclave.data.tokens import Example
from autoclave.errors import InputError
from autoclave.progress import ProgressCallback
from autoclave.sanitizing.moments import adapted_inputs, in_groups, second_moments
from autoclave.sanitizing.sanitizer import Edit, Sanitizer
from autoclave.sanitizing.strengths import Strength

MAX_MOMENT_BYTES = 4 * 2**30


def ridge_projection(a: Tensor, user: Tensor, harmful: Tensor, *, mu: float, ridge: float) -> Tensor:
    """A' = A C_u (C_u + mu C_h + lambda I)^-1, float64.

    `a` (rows, d); `user` and `harmful` (d, d) float64 of trace 1 (or zero); lambda is `ridge` / d, that is
    `ridge` of the mean eigenvalue. One Cholesky factorisation in float64: small eigenvalues are where user
    and harmful inputs can be told apart, and the condition number, about d / ridge, is beyond float32.
    """
    features = user.shape[0]
    system = user + mu * harmful  # (d, d)
    system.diagonal().add_(ridge / features)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(user @ a.double().T, factor).T  # (rows, d)


class Projection(Sanitizer):
    """`solutions` are the new lora_A of every candidate mu: they are small, the moments are not kept."""

    method = "projection"

    def __init__(self, peft_model: Any, solutions: dict[float, dict[str, Tensor]]) -> None:
        super().__init__(peft_model)
        self.solutions = solutions

    @classmethod
    @torch.no_grad()
    def from_pass(
        cls,
        peft_model: Any,
        harmful: Sequence[Example],
        user: Sequence[Example],
        *,
        mus: Sequence[float],
        ridge: float,
        device: str | torch.device,
        batch_tokens: int = 8192,
        max_moment_bytes: int = MAX_MOMENT_BYTES,
        on_progress: ProgressCallback | None = None,
    ) -> Projection:
        """Measures moments on the realignment set and on the user's data, and solves for every mu.

        One pass over both sets if the moments of all inputs fit into `max_moment_bytes` (three float64
        matrices per distinct input), else as many as it takes. Raises InputError for an empty set.
        """
        if not harmful or not user:
            which = "realignment set" if not harmful else "user's data"
            raise InputError(f"the {which} is empty, so there is nothing to measure activations on.")
        sanitizer = cls(peft_model, {mu: {} for mu in mus})
        inputs = adapted_inputs(peft_model, device=device)
        for group in in_groups(inputs, max_moment_bytes, copies=3):
            moments = partial(
                second_moments,
                peft_model,
                inputs=group,
                device=device,
                batch_tokens=batch_tokens,
                on_progress=on_progress,
            )
            c_user, c_harmful = moments(user), moments(harmful)
            with peft_model.disable_adapter():
                c_bare = moments(harmful)
            for name, matrix in c_bare.items():
                c_harmful[name] = (c_harmful[name] + matrix) / 2
            for item in group:
                originals = [sanitizer.originals[name] for name in item.lora_a_names]
                stacked = torch.cat(originals)  # (sum of ranks, d)
                for mu in mus:
                    solved = ridge_projection(
                        stacked, c_user[item.name], c_harmful[item.name], mu=mu, ridge=ridge
                    ).to(stacked.dtype)
                    parts = torch.split(solved, [len(a) for a in originals])
                    sanitizer.solutions[mu] |= dict(zip(item.lora_a_names, parts, strict=True))
        return sanitizer

    def edit(self, strength: Strength) -> Edit:
        assert strength.mu in self.solutions, (strength, list(self.solutions))
        return Edit(self.solutions[strength.mu])
