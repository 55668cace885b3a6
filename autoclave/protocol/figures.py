"""The figures of a finished run: one row a state, and the differences that the paper speaks of."""

from __future__ import annotations

from typing import Any

from autoclave.protocol.results import FINETUNED, Results

_RATES = ("harmful_score", "refusal_rate", "coherence_rate")


def figures(results: Results) -> dict[str, Any]:
    """`states` (percent; nats per token for the loss) and `changes` of every sanitised state against the
    fine-tuned one, in points. A state that a gate did not release has a reason and no figures."""
    states = {state: _state(results, state) for state in results.states}
    before = states[FINETUNED]
    sanitized = [each.label for each in results.config.sanitize]
    return {
        "upload": results.done["upload"].result,
        "judge": results.config.judge,
        "states": states,
        "changes": {
            label: _difference(before, states[label]) for label in sanitized if states[label]["released"]
        },
    }


def _state(results: Results, state: str) -> dict[str, Any]:
    measured = results.done[f"measure-{state}"].result
    sanitized = results.done.get(f"sanitize-{state}")
    strength = {name: sanitized.result.get(name) for name in ("alpha", "mu")} if sanitized else {}
    if measured.get("released") is False:
        assert sanitized is not None
        return {"released": False, "reason": sanitized.result["reason"]}
    answered = results.done[f"answers-{state}"].result
    compared = results.done.get(f"compare-{state}")
    return {
        "released": True,
        **strength,
        **{name: value for name, value in measured.items() if name != "judge"},
        "held_out_loss": answered["held_out_loss"],
        "pairwise": compared.result if compared else None,
    }


def _difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: after[name] - before[name] for name in _RATES},
        "accuracy": {
            rule: after["accuracy"][rule]["utility"] - before["accuracy"][rule]["utility"]
            for rule in before["accuracy"]
        },
    }
