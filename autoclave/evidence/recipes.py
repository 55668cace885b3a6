"""How each defence of the table is trained: plain data, torch-free.

All alignment-stage defences start from the pretrained base, see the world's alignment data, and take as many
optimiser steps with the same LoRA, batch and schedule as the world's own alignment by plain training; the
fine-tuning-stage ones run on that plain one. Settings are the papers' (`autoclave.spec`) unless a recipe says
otherwise; what it says was chosen on the shipped world (seed 0), never on a world that is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from autoclave.spec import (
    AlignMethod,
    BoosterSpec,
    FinetuneMethod,
    LdifsSpec,
    LisaSpec,
    RepnoiseSpec,
    SftSpec,
    VaccineSpec,
)

Defence = Literal["sft", "vaccine", "repnoise", "booster", "lisa", "ldifs"]
AlignmentFile = Literal["alignment", "refusals"]
_SFT = SftSpec()


@dataclass(frozen=True)
class AlignPhase:
    """Training on a file of the operator's: `alignment` is the world's whole file, `refusals` its refusals
    alone, line by line the prompts of the harmful answers. `share` is the phase's part of the steps;
    `learning_rate` None is that of the world's own alignment."""

    method: AlignMethod
    file: AlignmentFile = "alignment"
    share: float = 1.0
    learning_rate: float | None = None

    @property
    def uses_harmful(self) -> bool:
        return self.method.name in ("repnoise", "booster")


@dataclass(frozen=True)
class Recipe:
    """No `phases`: the base is the world's own aligned one. `safe_file` is what lisa goes back to."""

    phases: tuple[AlignPhase, ...] = ()
    finetune: FinetuneMethod = _SFT
    safe_file: AlignmentFile | None = None

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    @property
    def stage(self) -> Literal["align", "finetune"]:
        return "align" if self.phases else "finetune"


RECIPES: dict[Defence, Recipe] = {
    "sft": Recipe(),
    "vaccine": Recipe((AlignPhase(VaccineSpec()),)),
    # Its data are pairs, so that nothing keeps the benign answers: at 1e-3 it destroys the model, at 1e-4 the
    # model refuses everything. Plain alignment after it, for half of the steps, mends that.
    "repnoise": Recipe(
        (
            AlignPhase(RepnoiseSpec(), file="refusals", share=0.5, learning_rate=1e-4),
            AlignPhase(_SFT, share=0.5),
        )
    ),
    # With the paper's 5 the base answers every harmful prompt: what a harmful step gains is least where
    # harm is known already.
    "booster": Recipe((AlignPhase(BoosterSpec(strength=0.5)),)),
    # Rounds of 100 and 900 steps, the paper's, are more than a whole job of this size.
    "lisa": Recipe(finetune=LisaSpec(alignment_steps=10, finetune_steps=30), safe_file="refusals"),
    "ldifs": Recipe(finetune=LdifsSpec()),
}
DEFENCES: Sequence[Defence] = tuple(RECIPES)


def epochs_of(phase: AlignPhase, *, total_steps: int, steps_per_epoch: int) -> int:
    """The epochs with which a phase comes nearest to its share of the steps, at least one."""
    return max(1, round(phase.share * total_steps / steps_per_epoch))
