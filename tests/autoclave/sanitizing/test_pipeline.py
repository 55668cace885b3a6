"""The pipeline is the projection, then a mask whose scores are those of the projected adapter."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from autoclave.sanitizing import pipeline as pipeline_module
from autoclave.sanitizing.activations import input_norms
from autoclave.sanitizing.masks import select
from autoclave.sanitizing.pipeline import Pipeline
from autoclave.sanitizing.projection import Projection
from autoclave.sanitizing.strengths import Strength
from autoclave.sanitizing.wanda import wanda_scores
from autoclave.spec import ActivationNormKind, MaskRule
from tests.autoclave.sanitizing.adapted import HARMFUL, USER, adapted

MUS = (0.5, 5.0)


def projection_of(model: Any) -> Projection:
    return Projection.from_pass(model, HARMFUL, USER, mus=MUS, ridge=0.01, device="cpu")


@pytest.mark.parametrize(
    ("rule", "kind"), [("matrix", "rms"), ("row", "rms"), ("global", "rms"), ("matrix", "mean")]
)
def test_masks_are_those_of_the_projected_adapter(
    base_dir: Path, rule: MaskRule, kind: ActivationNormKind
) -> None:
    model = adapted(base_dir)
    pipeline = Pipeline(model, projection_of(model), HARMFUL, device="cpu", rule=rule, kind=kind)
    changes = pipeline.apply(Strength(alpha=0.1, mu=5.0))
    after = {name: layer.weight.clone() for name, layer in pipeline.layers.items()}

    other = adapted(base_dir)  # the same adapter; projected, and nothing else known of it
    projected = projection_of(other)
    projected.apply(Strength(mu=5.0))
    norms = input_norms(other, HARMFUL, device="cpu", kind=kind)
    scores = {name: wanda_scores(layer.weight, norms[name].norm) for name, layer in projected.layers.items()}
    masks = select(scores, 0.1, rule)
    for name, layer in projected.layers.items():
        assert torch.equal(after[name], layer.weight.masked_fill(masks[name], 0)), name
        assert torch.equal(pipeline.masks_of_last_apply[name], masks[name])
        assert changes[name].pruned == masks[name].sum()
        assert torch.equal(pipeline.norms(5.0)[name].norm, norms[name].norm)
    # Not those of the adapter as it was trained.
    trained = input_norms(adapted(base_dir), HARMFUL, device="cpu", kind=kind)
    assert any(not torch.equal(trained[name].norm, norms[name].norm) for name in norms)


def test_alphas_share_the_pass_of_their_mu(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(base_dir, ("q_proj",))
    pipeline = Pipeline(model, projection_of(model), HARMFUL, device="cpu")
    passes = []

    def counted(*arguments: Any, **options: Any) -> Any:
        passes.append(arguments)
        return input_norms(*arguments, **options)

    monkeypatch.setattr(pipeline_module, "input_norms", counted)
    for alpha in (0.05, 0.2, 0.4):
        pipeline.apply(Strength(alpha, 0.5))
    assert len(passes) == 1
    pipeline.apply(Strength(0.05, 5.0))
    assert len(passes) == 2
    pipeline.apply(Strength(0.2, 0.5))
    assert len(passes) == 2


@pytest.mark.parametrize("rule", ["row", "matrix", "global"])
def test_masks_of_one_mu_are_nested(base_dir: Path, rule: MaskRule) -> None:
    model = adapted(base_dir)
    pipeline = Pipeline(model, projection_of(model), HARMFUL, device="cpu", rule=rule)
    masks = [pipeline.edit(Strength(alpha, 0.5)).masks for alpha in (0.01, 0.05, 0.3)]
    for smaller, larger in itertools.pairwise(masks):
        assert all(not (smaller[name] & ~larger[name]).any() for name in smaller)
        assert sum(int(mask.sum()) for mask in smaller.values()) < sum(int(m.sum()) for m in larger.values())


@pytest.mark.parametrize("strength", [Strength(alpha=0.1), Strength(mu=0.5), Strength(0.1, 7.0)])
def test_it_needs_an_alpha_and_a_mu_that_was_solved_for(base_dir: Path, strength: Strength) -> None:
    model = adapted(base_dir, ("q_proj",))
    with pytest.raises(AssertionError):
        Pipeline(model, projection_of(model), HARMFUL, device="cpu").apply(strength)
