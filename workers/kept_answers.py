"""Answers of a job that a later attempt need not make again: one object for each call of a generator.

They lie below the job's private prefix, where no route reads, and go with it. They decide a harmful score,
so whoever can write to the storage must not be able to change them: each object is signed with a key that
only the database knows (the prepare stage's output), over a digest of everything that the answers follow
from. What is missing, torn, forged or of anything else is answered anew.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from autoclave.generation.answers import Answer, Generator, OnAnswer, Prompt
from autoclave.progress import ProgressCallback
from service.storage import Storage, StorageUnavailableError

logger = logging.getLogger(__name__)


class StoredAnswers:
    """A generator in front of another one."""

    def __init__(
        self, inner: Generator, storage: Storage, prefix: str, *, key: bytes, of: Mapping[str, Any]
    ) -> None:
        """`of` is JSON-ready and says what decides the answers besides prompts and length: the weights as
        they are now, the device, the size of a batch."""
        self._inner, self._storage, self._prefix, self._key, self._of = inner, storage, prefix, key, dict(of)
        self.name = inner.name

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int,
        on_answer: OnAnswer | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> list[Answer]:
        """Raises what the generator raises. A storage that fails costs the keeping, not the answers."""
        of = {**self._of, "generator": self.name, "max_new_tokens": max_new_tokens, "prompts": prompts}
        digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
        key = f"{self._prefix}/{digest}.json"
        answers = self._read(key, digest)
        if answers is None or len(answers) != len(prompts):
            answers = self._inner.answer(prompts, max_new_tokens=max_new_tokens, on_progress=on_progress)
            self._write(key, digest, answers)
        else:
            logger.info("%d answers of an earlier attempt are used", len(answers))
        if on_answer:
            for place, answer in enumerate(answers):
                on_answer(place, answer)
        return answers

    def _read(self, key: str, digest: str) -> list[Answer] | None:
        try:
            stored = json.loads(b"".join(self._storage.stream(key)))
            rows, mac = stored["answers"], stored["mac"]
            if not hmac.compare_digest(mac, self._mac(digest, rows)):
                logger.error("kept answers are not those of this job and are made anew")
                return None
            return [Answer(str(text), int(count), bool(cut_off)) for text, count, cut_off in rows]
        except FileNotFoundError:
            return None
        except (StorageUnavailableError, ValueError, KeyError, TypeError) as error:
            logger.warning("kept answers cannot be read: %s", type(error).__name__)
            return None

    def _write(self, key: str, digest: str, answers: Sequence[Answer]) -> None:
        rows = [[answer.text, answer.num_tokens, answer.cut_off] for answer in answers]
        try:
            self._storage.put(key, json.dumps({"answers": rows, "mac": self._mac(digest, rows)}).encode())
        except StorageUnavailableError as error:
            logger.warning("answers not kept: %s", error)

    def _mac(self, digest: str, rows: Any) -> str:
        signed = json.dumps([digest, rows]).encode()
        return hmac.new(self._key, signed, hashlib.sha256).hexdigest()
