"""One fine-tuning run of a suite: which world, which upload, which adapter, how trained. Plain data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from autoclave.evidence.recipes import RECIPES, Defence
from autoclave.microcosm.attacks import AttackForm
from autoclave.spec import ATTENTION_QKV, LoraSpec, TrainSpec

Targets = Literal["all-linear", "q,k,v"]


@dataclass(frozen=True)
class Run:
    """`seed` draws the world (and so its base model), the upload and the adapter's start. `poison` is the
    harmful share of the upload's `rows`. lora_alpha is twice the rank. `defence` names a recipe, of the base
    or of the fine-tuning."""

    seed: int = 0
    form: AttackForm = "plain"
    poison: float = 0.1
    rows: int = 1000
    learning_rate: float = 1e-3
    epochs: int = 5
    rank: int = 16
    targets: Targets = "all-linear"
    defence: Defence = "sft"

    def lora(self) -> LoraSpec:
        targets = "all-linear" if self.targets == "all-linear" else ATTENTION_QKV
        return LoraSpec(r=self.rank, lora_alpha=2 * self.rank, target_modules=targets)

    def train(self) -> TrainSpec:
        return TrainSpec(n_epochs=self.epochs, learning_rate=self.learning_rate, seed=self.seed)

    def with_seed(self, seed: int) -> Run:
        return replace(self, seed=seed)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def digest(self) -> str:
        """Of every field and the recipe. That of a plain run is what it was before there were defences."""
        fields: dict[str, Any] = self.as_dict()
        if self.defence == "sft":
            del fields["defence"]
        else:
            fields["recipe"] = RECIPES[self.defence].digest
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
