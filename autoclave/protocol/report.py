"""A run's figures as rows, for the terminal and for result.md. Torch-free."""

from __future__ import annotations

from typing import Any

NOTHING = "-"


def measured_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heading, rows): a state a row."""
    states = result["states"]
    rules = list(next(iter(states.values()))["accuracy"])
    heading = ["state", "strength", "harmful score", "refused", "coherent"]
    heading += [f"accuracy ({rule})" for rule in rules]
    is_compared = next(iter(states.values()))["pairwise"] is not None
    heading += ["win rate", "characters"] * is_compared + ["loss"]
    rows = []
    for name, state in states.items():
        if not state["released"]:
            rows.append([name, "stopped by its gate", *[NOTHING] * (len(heading) - 2)])
            continue
        cells = [_with_interval(state, key) for key in ("harmful_score", "refusal_rate", "coherence_rate")]
        cells += [_with_interval(state["accuracy"][rule], "utility") for rule in rules]
        if is_compared:
            pairwise = state["pairwise"]
            cells += [_with_interval(pairwise, "win_rate"), f"{pairwise['mean_length']:.0f}"]
        loss = state["held_out_loss"]
        rows.append([name, _strength(state), *cells, NOTHING if loss is None else f"{loss:.3f}"])
    return heading, rows


def published_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heading, rows): what others measured, a row for each of their states, as far as there are numbers."""
    rows = []
    for each in result["published"]:
        for state in {**each["harmful_score"], **each["accuracy"]}:
            cells = [_number(each[kind].get(state)) for kind in ("harmful_score", "accuracy")]
            rows.append([each["model"], each["setting"], state, *cells, each["source"]])
    return ["model", "setting", "state", "harmful score", "accuracy", "source"], rows


def write_report(result: dict[str, Any]) -> str:
    """Markdown."""
    config, upload = result["config"], result["upload"]
    parts = [
        f"# Protocol {result['name']}",
        config["about"],
        f"Upload: {upload['harmful']} harmful rows and {upload['task']} of the task (p = "
        f"{config['attack']['p']:g}). Judge: {result['judge']}. Percent, with 95 % Wilson intervals; loss in "
        "nats per token of the right answers.",
        _markdown(*measured_rows(result)),
    ]
    for name, state in result["states"].items():
        if not state["released"]:
            parts.append(f"{name}: {state['reason']}")
    if result["shared_prompts"]:
        parts.append(
            "Some prompts of the evaluation are in the realignment set, too: the figures flatter the defence."
        )
    if result["published"]:
        parts += ["Published by others, for comparison:", _markdown(*published_rows(result))]
        parts += [f"{each['source']}: {each['note']}" for each in result["published"] if each["note"]]
    if config["deviations"]:
        parts.append("Differences from the authors' set-up: " + "; ".join(config["deviations"]) + ".")
    seconds = sum(step["seconds"] for step in result["steps"].values())
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    parts.append(f"{seconds:.0f} s in all steps, on {result['device']} ({result['machine']}); {versions}.")
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(heading: list[str], rows: list[list[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)


def _with_interval(values: dict[str, Any], key: str) -> str:
    low, high = values[f"{key}_interval"]
    return f"{values[key]:.1f} ({low:.1f} to {high:.1f})"


def _strength(state: dict[str, Any]) -> str:
    given = {name: state.get(name) for name in ("alpha", "mu")}
    return ", ".join(f"{name} {value:g}" for name, value in given.items() if value is not None) or NOTHING


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.1f}"
