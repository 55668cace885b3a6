"""Answers kept in a file as they come, so that a run that failed in the middle asks only what is missing.

JSONL. The first line says of what the answers are (weights, generator, length); a file of anything else is
refused, never mixed in. A line that was cut off by a crash is dropped. Equal prompts are asked once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autoclave.errors import InputError
from autoclave.generation.answers import Answer, Generator, OnAnswer, Prompt
from autoclave.progress import ProgressCallback


class KeptAnswers:
    """A generator in front of another one."""

    def __init__(self, inner: Generator, file: str | Path, *, of: Mapping[str, Any]) -> None:
        """`of` is JSON-ready and says what decides the answers besides prompt and length, such as digests of
        base and adapter."""
        self._inner, self._file, self._of = inner, Path(file), dict(of)
        self.name = inner.name
        self.num_resumed = 0
        """How many prompts of the last call needed no asking."""

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        """Raises InputError for a file that holds other answers, besides what the generator raises. The
        progress counts the prompts that are asked."""
        header = {"of": {**self._of, "generator": self.name, "max_new_tokens": max_new_tokens}}
        known = self._read(header)
        digests = [_digest(prompt) for prompt in prompts]
        places: dict[str, int] = {}
        for place, digest in enumerate(digests):
            if digest not in known:
                places.setdefault(digest, place)
        missing = list(places.values())
        self.num_resumed = sum(digest in known for digest in digests)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as out:

            def keep(index: int, answer: Answer) -> None:
                digest = digests[missing[index]]
                known[digest] = answer
                row = {"prompt": digest, "text": answer.text, "num_tokens": answer.num_tokens}
                out.write(json.dumps(row | {"cut_off": answer.cut_off}) + "\n")
                out.flush()

            if out.tell() == 0:
                out.write(json.dumps(header, sort_keys=True) + "\n")
            if missing:
                self._inner.answer(
                    [prompts[place] for place in missing],
                    max_new_tokens=max_new_tokens,
                    on_answer=keep,
                    on_progress=on_progress,
                )
        answers = [known[digest] for digest in digests]
        if on_answer:
            for place, answer in enumerate(answers):
                on_answer(place, answer)
        return answers

    def _read(self, header: dict[str, Any]) -> dict[str, Answer]:
        """What is in the file, which afterwards ends with a whole line."""
        if not self._file.is_file() or self._file.stat().st_size == 0:
            return {}
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self._file, len(whole))
        if not whole:
            return {}
        first, *rows = whole.splitlines()
        try:
            found = json.loads(first)
            answers = {
                str(row["prompt"]): Answer(str(row["text"]), int(row["num_tokens"]), bool(row["cut_off"]))
                for row in map(json.loads, rows)
            }
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._file} is no file of kept answers. Name another one.") from error
        if found != json.loads(json.dumps(header)):
            differing = _differing(found, header)
            raise InputError(
                f"{self._file} keeps answers of something else ({differing} differs). Delete it, or name "
                "another file."
            )
        return answers


def _differing(found: Any, header: dict[str, Any]) -> str:
    there = found.get("of") if isinstance(found, dict) else None
    if not isinstance(there, dict):
        return "its first line"
    names = [name for name in {**header["of"], **there} if there.get(name) != header["of"].get(name)]
    return ", ".join(names) or "its first line"


def _digest(prompt: Prompt) -> str:
    return hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
