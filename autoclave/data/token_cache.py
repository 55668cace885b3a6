"""Tokens of a file, kept in a folder: the same data with the same tokenizer and template is tokenised once.

One safetensors file per entry (nothing in it is ever executed), named after the hash of everything that its
content depends on. The folder holds users' data and is readable by its owner alone. Several processes may
share it: an entry appears whole or not at all, and who finds none, or a damaged one, tokenises.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from autoclave import __version__
from autoclave.data.conversations import read_conversations
from autoclave.data.tokens import Encoded, Example, encode
from autoclave.errors import InputError
from autoclave.hashing import file_sha256

logger = logging.getLogger(__name__)
DEFAULT_MAX_BYTES = 2 * 2**30
DEFAULT_MAX_AGE_SECONDS = 24 * 3600
_FORMAT = 1
_PARTIAL_SECONDS = 3600  # a writer takes no longer; what it leaves when killed is removed after that


class TokenCache:
    """Entries are removed `max_age_seconds` after they were made, used or not, and the oldest of them when
    all together take more than `max_bytes`; both whenever one is added."""

    def __init__(
        self,
        folder: str | Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_age_seconds: float = DEFAULT_MAX_AGE_SECONDS,
    ) -> None:
        """Makes the folder. Raises InputError for one that others may read or enter."""
        self.folder = Path(folder)
        self._max_bytes, self._max_age_seconds = max_bytes, max_age_seconds
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if stat.S_IMODE(self.folder.stat().st_mode) & 0o077:
            raise InputError(
                f"{self.folder}: others may read this folder, and a token cache holds training data. "
                "Give its owner alone the right (chmod 700), or name another folder."
            )

    def encoded(
        self,
        tokenizer: Any,
        file: str | Path,
        *,
        max_seq_length: int,
        too_long: Literal["truncate", "refuse"] = "truncate",
        train_on_inputs: bool = False,
    ) -> Encoded:
        """What `encode` gives for the conversations of a chat JSONL file. Raises what that and
        `read_conversations` raise; trouble with the folder costs time, no more."""
        settings = {
            "max_seq_length": max_seq_length,
            "too_long": too_long,
            "train_on_inputs": train_on_inputs,
        }
        data = file_sha256(file)
        key = cache_key(tokenizer, data, settings)
        path = self.folder / f"{key}.safetensors"
        if (found := self._load(path)) is not None:
            return found
        fresh = encode(
            tokenizer,
            read_conversations(file),
            max_seq_length=max_seq_length,
            too_long=too_long,
            train_on_inputs=train_on_inputs,
        )
        if file_sha256(file) == data:  # else it changed under our hands
            self._keep(fresh, path)
        return fresh

    def _load(self, path: Path) -> Encoded | None:
        try:
            if time.time() - path.stat().st_mtime > self._max_age_seconds:
                return None
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                ids, labels, ends = (file.get_tensor(name) for name in ("input_ids", "labels", "ends"))
            if metadata.get("sha256") != _digest(ids, labels, ends):
                raise ValueError("its checksum is not that of its content")
            num_truncated, num_dropped = int(metadata["num_truncated"]), int(metadata["num_dropped"])
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            logger.warning("an entry of the token cache is damaged and is made anew: %s", error)
            return None
        starts = [0, *ends[:-1].tolist()]
        examples = [
            Example(ids[start:end], labels[start:end])
            for start, end in zip(starts, ends.tolist(), strict=True)
        ]
        return Encoded(examples, num_truncated, num_dropped)

    def _keep(self, encoded: Encoded, path: Path) -> None:
        if not encoded.examples:
            return
        ids = np.concatenate([example.input_ids for example in encoded.examples])  # (T,) int32
        labels = np.concatenate([example.labels for example in encoded.examples])  # (T,) int32
        ends = np.cumsum([len(example) for example in encoded.examples], dtype=np.int64)  # (N,)
        if ids.nbytes + labels.nbytes + ends.nbytes > self._max_bytes:
            return
        metadata = {
            "sha256": _digest(ids, labels, ends),
            "num_truncated": str(encoded.num_truncated),
            "num_dropped": str(encoded.num_dropped),
        }
        try:
            descriptor, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=self.folder)
            os.close(descriptor)
            partial = Path(name)  # mkstemp's are readable by the owner alone
            try:
                save_file({"input_ids": ids, "labels": labels, "ends": ends}, partial, metadata)
                partial.chmod(0o600)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            self._prune()
        except (OSError, SafetensorError) as error:
            logger.warning("tokens were not kept: %s", error)

    def _prune(self) -> None:
        now = time.time()
        for partial in self.folder.glob(".*.partial"):
            if now - _made_at(partial) > _PARTIAL_SECONDS:
                partial.unlink(missing_ok=True)
        total = 0
        newest_first = sorted(self.folder.glob("*.safetensors"), key=_made_at, reverse=True)
        for entry in newest_first:
            try:
                total += entry.stat().st_size
            except FileNotFoundError:
                continue
            if total > self._max_bytes or now - _made_at(entry) > self._max_age_seconds:
                entry.unlink(missing_ok=True)


def cache_key(tokenizer: Any, data_sha256: str, settings: dict[str, Any]) -> str:
    """Hex digest of all that the tokens depend on: the data, the tokenizer with its template, the settings,
    and the versions of what renders and tokenises. A template that asks for the date is new each day."""
    template = tokenizer.chat_template or ""
    parts = {
        "format": _FORMAT,
        "data": data_sha256,
        "settings": settings,
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
        if tokenizer.is_fast
        else None,
        "class": type(tokenizer).__name__,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "template": template,
        "date": time.strftime("%Y-%m-%d") if "strftime_now" in str(template) else None,
        "versions": [__version__, *(version(name) for name in ("transformers", "tokenizers"))],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _made_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0.0
