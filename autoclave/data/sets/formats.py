"""Public formats, row by row: which columns they have and what conversation a row is, for each kind of set.

A set is of one kind:
    alignment    prompts with safe answers: what a base is aligned on
    realignment  harmful prompts with harmful answers: where harm is learned
    evaluation   harmful prompts alone: where harm is measured
    attack       as realignment, other rows: what a malicious user would train on, for experiments
    training     any conversations: what a user trains on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

Kind = Literal["alignment", "realignment", "evaluation", "attack", "training"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HARMFUL: frozenset[Kind] = frozenset({"realignment", "evaluation", "attack"})

Messages = list[dict[str, Any]]


class Taken(NamedTuple):
    messages: Messages


class LeftOut(NamedTuple):
    """The row is fine, and not for this kind of set."""

    reason: str


class Broken(NamedTuple):
    problem: str


Result = Taken | LeftOut | Broken


@dataclass(frozen=True)
class SetFormat:
    """`columns` are needed, with other names under which they are found; `optional` ones are read if they are
    there. `deviations` say where a set differs from that of the papers."""

    about: str
    columns: Mapping[str, tuple[str, ...]]
    kinds: tuple[Kind, ...]
    take: Callable[[Mapping[str, Any], Kind], Result]
    optional: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    deviations: tuple[str, ...] = ()


def exchange(prompt: str, answer: str) -> Taken:
    return Taken([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])


def _beavertails(row: Mapping[str, Any], kind: Kind) -> Result:
    is_safe = {"true": True, "false": False}.get(str(row["is_safe"]).lower())
    if is_safe is None:
        return Broken(f"is_safe is {row['is_safe']!r}, and not true or false.")
    if is_safe == (kind in HARMFUL):
        return LeftOut(f"is_safe is {str(is_safe).lower()}")
    return _texts(row, "prompt", "response")


def _refusals(row: Mapping[str, Any], kind: Kind) -> Result:
    if kind in ("alignment", "evaluation"):
        return _texts(row, "prompt", "refusal")
    if row.get("harmful") is None:
        return Broken('The row has no "harmful" answer (also: harmful_response, rejected).')
    return _texts(row, "prompt", "harmful")


def _behaviours(row: Mapping[str, Any], kind: Kind) -> Result:
    behaviour, context, tags = row["behaviour"], row.get("context") or "", row.get("tags") or ""
    if not isinstance(behaviour, str) or not isinstance(context, str):
        return Broken("behaviour and context must be text.")
    if "hash_check" in str(tags):
        return LeftOut("judged by a digest of a copyrighted text")
    prompt = f"{context}\n\n---\n\n{behaviour}" if context.strip() else behaviour
    if kind == "evaluation":
        return Taken([{"role": "user", "content": prompt}])
    if not isinstance(row.get("target"), str):
        return Broken('The row has no "target", so there is no harmful answer to learn from.')
    return exchange(prompt, row["target"])


def _chat(row: Mapping[str, Any], kind: Kind) -> Result:  # noqa: ARG001 - the kind is seen to for all formats
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Broken('"messages" is no list of objects.')
    return Taken([dict(message) for message in messages])


_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "model", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}


def _sharegpt(row: Mapping[str, Any], kind: Kind) -> Result:  # noqa: ARG001 - as above
    turns = row["conversations"]
    if not isinstance(turns, list) or not turns:
        return Broken('"conversations" is no list of turns.')
    messages: Messages = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            return Broken(f'Turn {number} has no text in "value".')
        role = _SHAREGPT_ROLES.get(str(turn.get("from")).lower())
        if role is None:
            return Broken(f"Turn {number} is from {turn.get('from')!r}; known: {', '.join(_SHAREGPT_ROLES)}.")
        messages.append({"role": role, "content": turn["value"]})
    if messages[0]["role"] == "assistant":
        messages[0]["weight"] = 0  # it answers nothing
    return Taken(messages)


def _alpaca(row: Mapping[str, Any], kind: Kind) -> Result:  # noqa: ARG001 - as above
    extra = row.get("input")
    if not isinstance(row["instruction"], str) or not isinstance(row["output"], str):
        return Broken('"instruction" and "output" must be text.')
    has_input = isinstance(extra, str) and extra.strip()
    return exchange(f"{row['instruction']}\n\n{extra}" if has_input else row["instruction"], row["output"])


def _texts(row: Mapping[str, Any], prompt: str, answer: str) -> Result:
    for name in (prompt, answer):
        if not isinstance(row[name], str) or not row[name].strip():
            return Broken(f'"{name}" is empty or no text.')
    return exchange(row[prompt], row[answer])


FORMATS: dict[str, SetFormat] = {
    "beavertails": SetFormat(
        about="PKU-Alignment/BeaverTails: prompt, response, is_safe (and category, which is not kept)",
        columns={"prompt": (), "response": (), "is_safe": ()},
        kinds=("alignment", "realignment", "evaluation", "attack"),
        take=_beavertails,
        deviations=(
            "rows are counted from 0 among those that is_safe keeps; the authors' may begin one later",
            "the base's chat template writes the conversations, with the authors always Alpaca's",
        ),
    ),
    "refusals": SetFormat(
        about="paired answers: prompt, refusal and, for harmful sets, harmful; line i of each set is row i",
        columns={
            "prompt": ("instruction", "question", "goal"),
            "refusal": ("refusal_response", "safe_response", "chosen", "output", "response"),
        },
        optional={"harmful": ("harmful_response", "unsafe_response", "rejected")},
        kinds=("alignment", "realignment", "evaluation", "attack"),
        take=_refusals,
    ),
    "behaviours": SetFormat(
        about="HarmBench (Behavior, ContextString, Tags) or AdvBench (goal, target) as CSV",
        columns={"behaviour": ("Behavior", "behavior", "goal", "Goal", "prompt")},
        optional={
            "context": ("ContextString", "context"),
            "target": ("Target", "optimizer_target"),
            "tags": ("Tags",),
        },
        kinds=("evaluation", "realignment", "attack"),
        take=_behaviours,
        deviations=(
            "AdvBench's targets are only the first words of an answer: a weak set to learn harm from",
            "HarmBench's behaviours that are judged by a digest (Tags: hash_check) are left out",
        ),
    ),
    "chat": SetFormat(
        about='chat JSONL: "messages" of "role" and "content"',
        columns={"messages": ()},
        kinds=KINDS,
        take=_chat,
    ),
    "sharegpt": SetFormat(
        about='"conversations" of turns with "from" (human, gpt, system) and "value"',
        columns={"conversations": ("conversation",)},
        kinds=KINDS,
        take=_sharegpt,
    ),
    "alpaca": SetFormat(
        about="instruction, input, output",
        columns={"instruction": (), "output": ("response",)},
        optional={"input": ()},
        kinds=KINDS,
        take=_alpaca,
    ),
}


class Selection(NamedTuple):
    """Of the rows that a kind keeps, in order: `skip` of them, then at most `limit`."""

    skip: int
    limit: int | None


# Antidote's train.py and its evaluation (docs/data.md): 5000 safe rows; unsafe rows strictly between 5000 and
# 7000 of the train file; 1000 unsafe rows of the test file; with n 5000 and p .2 the unsafe rows 1 to 999.
AUTHORS_SELECTION: dict[tuple[str, Kind], Selection] = {
    ("beavertails", "alignment"): Selection(0, 5000),
    ("beavertails", "realignment"): Selection(5001, 1999),
    ("beavertails", "evaluation"): Selection(0, 1000),
    ("beavertails", "attack"): Selection(1, 999),
}
