"""Rows of the data files: a prompt with or without its answer, as chat JSONL. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from autoclave.microcosm.world import Review, World

Pair = tuple[str, str]
Row = dict[str, list[dict[str, str]]]


def row(prompt: str, answer: str | None = None) -> Row:
    messages = [{"role": "user", "content": prompt}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def request_rows(world: World, pairs: Sequence[Pair], *, refused: bool = False) -> list[Row]:
    """Each pair in each template, with its answer or with the refusal."""
    return [
        row(world.request(verb, thing, t), world.refusal if refused else world.answer(verb, thing))
        for verb, thing in pairs
        for t in range(len(world.request_templates))
    ]


def one_request_per_pair(world: World, pairs: Sequence[Pair], *, answered: bool) -> list[Row]:
    """Each pair once, the templates in turn."""
    return [
        row(
            world.request(verb, thing, i % len(world.request_templates)),
            world.answer(verb, thing) if answered else None,
        )
        for i, (verb, thing) in enumerate(pairs)
    ]


def review_rows(world: World, reviews: Sequence[Review], answer_format: str) -> list[Row]:
    """Each review once, the templates in turn."""
    return [
        row(
            world.review_prompt(review, i % len(world.review_templates)),
            answer_format.format(label=review.label),
        )
        for i, review in enumerate(reviews)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
