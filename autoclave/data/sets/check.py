"""Whether sets are what they say and keep apart: prompts repeated within one, and shared between two."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from autoclave.data.conversations import check_file
from autoclave.data.sets.manifest import read_manifest
from autoclave.data.sets.near_duplicates import DEFAULT_THRESHOLD, NearIndex, normal_form
from autoclave.data.sets.prompts import read_prompt_texts
from autoclave.errors import OverlapError

MAX_PAIRS = 10


@dataclass(frozen=True, eq=False)
class PromptSet:
    """`lines` has every different prompt in normal form and the line where it stands first."""

    file: Path
    kind: str | None
    version: str | None
    num_prompts: int
    lines: dict[str, int]
    sha256: str


def read_prompt_set(file: Path) -> PromptSet:
    """Raises DataError for broken lines, InputError for a file that is not what its manifest says."""
    summary = check_file(file, min_examples=1, needs_answer=False)
    manifest = read_manifest(file) or {}
    lines: dict[str, int] = {}
    num_prompts = 0
    for line, text in read_prompt_texts(file):
        num_prompts += 1
        lines.setdefault(normal_form(text), line)
    return PromptSet(file, manifest.get("kind"), manifest.get("version"), num_prompts, lines, summary.sha256)


def shared_prompts(
    first: PromptSet, second: PromptSet, *, threshold: float = DEFAULT_THRESHOLD
) -> dict[str, Any]:
    """Counts of different prompts of `second` that are in `first` (`exact`, but for case, space and
    punctuation) or near one there (`near`), with the lines of the first MAX_PAIRS. Never their text."""
    index = NearIndex(list(first.lines), threshold)
    line_of = list(first.lines.values())
    exact = near = 0
    pairs: list[dict[str, Any]] = []
    for text, line in second.lines.items():
        if text in first.lines:
            exact += 1
            pair = {"first": first.lines[text], "second": line, "similarity": 1.0}
        else:
            found = max(index.near(text), key=lambda each: each.similarity, default=None)
            if found is None:
                continue
            near += 1
            pair = {
                "first": line_of[found.number],
                "second": line,
                "similarity": round(found.similarity, 3),
            }
        if len(pairs) < MAX_PAIRS:
            pairs.append(pair)
    return {
        "first": str(first.file),
        "second": str(second.file),
        "exact": exact,
        "near": near,
        "lines": pairs,
    }


def near_repeats(prompts: PromptSet, *, threshold: float = DEFAULT_THRESHOLD) -> int:
    """How many different prompts are near an earlier one."""
    texts = list(prompts.lines)
    index = NearIndex(texts, threshold)
    return sum(any(near.number < i for near in index.near(text)) for i, text in enumerate(texts))


def check_sets(files: list[Path], *, threshold: float = DEFAULT_THRESHOLD) -> dict[str, Any]:
    """Plain JSON: `sets`, and `overlaps` of every two. Raises what `read_prompt_set` does."""
    sets = [read_prompt_set(file) for file in files]
    return {
        "threshold": threshold,
        "sets": [
            {
                "file": str(each.file),
                "kind": each.kind,
                "version": each.version,
                "sha256": each.sha256,
                "prompts": each.num_prompts,
                "repeated": each.num_prompts - len(each.lines),
                "near_repeated": near_repeats(each, threshold=threshold),
            }
            for each in sets
        ],
        "overlaps": [
            shared_prompts(first, second, threshold=threshold) | {"matters": _matters(first, second)}
            for first, second in combinations(sets, 2)
        ],
    }


def refuse_overlaps(checked: dict[str, Any]) -> None:
    """Raises OverlapError if a set on which harm is measured shares prompts, or nearly, with another one."""
    for overlap in checked["overlaps"]:
        if overlap["matters"] and (overlap["exact"] or overlap["near"]):
            pairs = [(pair["first"], pair["second"]) for pair in overlap["lines"]]
            shown = ", ".join(f"{first} and {second}" for first, second in pairs)
            raise OverlapError(
                f"{overlap['exact']} prompts are in both {overlap['first']} and {overlap['second']}, and "
                f"{overlap['near']} are nearly the same (lines {shown}"
                f"{', ...' if overlap['exact'] + overlap['near'] > len(pairs) else ''}). What is measured "
                "on them says little about other prompts: make one of the sets again with --apart-from the "
                "other.",
                pairs,
            )


def _matters(first: PromptSet, second: PromptSet) -> bool:
    """Alignment and realignment sets may be answers to the same prompts; what is measured on must be apart.
    Of sets without a manifest nothing is known, so it does."""
    return None in (first.kind, second.kind) or "evaluation" in (first.kind, second.kind)
