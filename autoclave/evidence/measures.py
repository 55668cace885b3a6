"""What a suite measures on one run, as flat rows."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

from autoclave.errors import SafetyGateError
from autoclave.evidence.bench import DEVICE, Bench
from autoclave.evidence.suites import FixedMask, Suite, sanitizer_label
from autoclave.microcosm.profile import GATE
from autoclave.sanitizing.activations import input_norms
from autoclave.sanitizing.antidote import Antidote
from autoclave.sanitizing.gate import gate_refusal
from autoclave.sanitizing.gated import sanitize_gated
from autoclave.sanitizing.methods import build_sanitizer
from autoclave.sanitizing.random_control import by_magnitude, randomly_pruned
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import ActivationNormKind, MaskRule, SanitizeSpec

Row = dict[str, Any]


def measure_run(suite: Suite, bench: Bench) -> list[Row]:
    """Rows of `suite` for the run that `bench` holds; each has the columns of the run."""
    common = {"suite": suite.name, **bench.run.as_dict()}
    rows = [
        {"state": "base", **bench.base_scores},
        {
            "state": "before",
            "seconds": bench.seconds_training,
            "cpu_seconds": bench.cpu_seconds_training,
            **bench.scores_before,
        },
    ]
    antidotes: dict[tuple[str, str], Antidote] = {}
    rows += [_fixed(bench, mask, antidotes) for mask in suite.fixed]
    rows += [_searched(bench, spec) for spec in suite.searched]
    for alpha in suite.overlap_alphas:
        rows += _overlap(bench, alpha)
    return [common | row for row in rows]


def _fixed(bench: Bench, mask: FixedMask, antidotes: dict[tuple[str, str], Antidote]) -> Row:
    with _masked(bench, mask, antidotes):
        scores = bench.scores()
    return {
        "state": "after",
        "method": mask.scores,
        "rule": mask.rule,
        "norm": mask.norm,
        "alpha": mask.alpha,
        **scores,
    }


def _masked(
    bench: Bench, mask: FixedMask, antidotes: dict[tuple[str, str], Antidote]
) -> AbstractContextManager[Any]:
    rule = cast(MaskRule, mask.rule)
    if mask.scores == "random":
        return randomly_pruned(bench.model, mask.alpha, seed=bench.run.seed, rule=rule)
    if mask.scores == "magnitude":
        return by_magnitude(bench.model, mask.alpha, rule=rule)
    key = (mask.rule, mask.norm)
    if key not in antidotes:
        kind = cast(ActivationNormKind, mask.norm)
        antidotes[key] = Antidote.from_pass(bench.model, bench.realign, device=DEVICE, rule=rule, kind=kind)
    return antidotes[key].applied(Strength(mask.alpha))


def _searched(bench: Bench, spec: SanitizeSpec) -> Row:
    """`released`: the search found a strength and the other half of the prompts agreed. Scores are those of
    the strength that was found, released or not; without one there are none."""
    name = sanitizer_label(spec)
    row: Row = {"state": "after", "method": name, "rule": spec.rule, "norm": spec.norm, "searched": True}
    started, cpu_started = time.perf_counter(), time.process_time()
    sanitizer = build_sanitizer(bench.model, spec, harmful=bench.realign, user=bench.upload, device=DEVICE)
    try:
        result = sanitize_gated(bench.model, sanitizer, spec, bench.choosing, GATE)
    except SafetyGateError as error:
        return row | {
            "released": False,
            "reason": error.reason,
            "evaluations": len(error.frontier),
            "seconds": round(time.perf_counter() - started, 2),
            "cpu_seconds": round(time.process_time() - cpu_started, 2),
        }
    held_out = bench.held_out_figures(result.found.figures)
    refusal = gate_refusal(held_out, before=result.before, gate=GATE, with_margin=False)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    scores = bench.scores()
    sanitizer.restore()
    return row | {
        "alpha": result.found.chosen.alpha,
        "mu": result.found.chosen.mu,
        "released": refusal is None,
        "reason": None if refusal is None else str(refusal),
        "evaluations": result.found.num_evaluations,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(cpu_seconds, 2),
        **scores,
    }


def _overlap(bench: Bench, alpha: float) -> list[Row]:
    """Jaccard index of Antidote's mask and the mask of the same size from rows of the user's task, per
    matrix, beside what two random masks of that size share."""
    harmful, task = (
        Antidote(bench.model, input_norms(bench.model, examples, device=DEVICE)).masks(alpha)
        for examples in (bench.realign, bench.task)
    )
    return [
        {
            "state": "overlap",
            "alpha": alpha,
            "matrix": name.removeprefix("base_model.model.model."),
            **figures,
        }
        for name, figures in ((name, _jaccard(harmful[name], task[name])) for name in harmful)
    ]


def _jaccard(one: Tensor, other: Tensor) -> dict[str, float]:
    share = one.float().mean().item()
    either = torch.logical_or(one, other).sum().item()
    return {
        "jaccard": torch.logical_and(one, other).sum().item() / either if either else 0.0,
        "jaccard_by_chance": share / (2 - share),
    }
