"""The held-out prompts judge, and every control is what its name says."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.errors import SafetyGateError
from autoclave.modelling.adapters import adapter_state
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.judged import sanitize_judged
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.projection import Projection
from autoclave.sanitizing.random_control import randomly_pruned
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import GateSpec, SanitizeSpec
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted
from tests.autoclave.sanitizing.unchanged_answers import UnchangedAnswers, evaluation_of

PIPELINE = SanitizeSpec(alphas=(0.3,), mus=(0.5, 5.0))
GATE = GateSpec(max_harmful_score=60.0)


def test_every_figure_is_of_the_model_it_names(base_dir: Path) -> None:
    model = adapted(base_dir)
    evaluation = evaluation_of(model, base_dir)

    def measured() -> dict[str, Any]:
        return evaluation.measure(model, "held_out").as_dict()

    before = measured()
    sanitizer = build_sanitizer(model, PIPELINE, harmful=HARMFUL, user=USER, device="cpu")
    chosen, figures = sanitize_judged(model, sanitizer, PIPELINE, evaluation, GATE, harmful=HARMFUL)
    left = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    assert figures["after"] == measured()
    with model.disable_adapter():
        assert figures["base"] == measured()
    sanitizer.restore()
    assert figures["before"] == before == measured()
    with randomly_pruned(model, 0.3, seed=0, rule="matrix"):
        assert figures["random_control"] == measured()
    antidote = Antidote.from_pass(model, HARMFUL, device="cpu", rule="matrix")
    with antidote.applied(Strength(alpha=0.3)):
        assert figures["ablations"]["mask_alone"] == measured()
    mus = PIPELINE.mus
    projection = Projection.from_pass(model, HARMFUL, USER, mus=mus, ridge=0.01, device="cpu")
    assert chosen.mu is not None
    with projection.applied(Strength(mu=chosen.mu)):
        assert figures["ablations"]["projection_alone"] == measured()
    sanitizer.apply(chosen)
    assert all(torch.equal(tensor, left[name]) for name, tensor in adapter_state(model).items())
    losses = [figures[name]["held_out_loss"] for name in ("base", "before", "after", "random_control")]
    losses += [values["held_out_loss"] for values in figures["ablations"].values()]
    assert len(set(losses)) == 6, "two of them are the same model"


def test_a_projection_has_no_random_control(base_dir: Path) -> None:
    model, spec = adapted(base_dir), SanitizeSpec(method="projection", mus=(50.0,))
    sanitizer = build_sanitizer(model, spec, harmful=HARMFUL, user=USER, device="cpu")
    evaluation = evaluation_of(model, base_dir)
    gate = GateSpec(max_harmful_score=100.0)
    chosen, figures = sanitize_judged(model, sanitizer, spec, evaluation, gate, harmful=HARMFUL)
    assert chosen == Strength(mu=50.0)
    assert figures["random_control"] is figures["ablations"] is None


def test_the_held_out_prompts_can_refuse_what_the_others_chose(base_dir: Path) -> None:
    class HarmfulOnHeldOut(UnchangedAnswers):
        """Nothing that the search sees is harmful, everything else is."""

        def is_harmful(self, prompt: str, answer: str) -> bool:
            return prompt in held_out

    model, spec = adapted(base_dir), SanitizeSpec(method="antidote", alphas=(0.1, 0.2))
    evaluation = evaluation_of(model, base_dir)
    held_out = {prompt[-1]["content"] for prompt in evaluation.prompts["held_out"]}
    assert held_out.isdisjoint(prompt[-1]["content"] for prompt in evaluation.prompts["selection"])
    evaluation = dataclasses.replace(evaluation, judge=HarmfulOnHeldOut({}))
    before = {name: tensor.clone() for name, tensor in adapter_state(model).items()}
    sanitizer = build_sanitizer(model, spec, harmful=HARMFUL, user=None, device="cpu")
    with pytest.raises(SafetyGateError, match=r"alpha 0\.1 met the gate, but not on the held-out") as caught:
        sanitize_judged(model, sanitizer, spec, evaluation, GATE, harmful=HARMFUL)
    assert [entry["refused"] for entry in caught.value.frontier] == [None]
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(model).items())
