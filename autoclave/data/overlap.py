"""Prompts that two sets share: harm must be measured on prompts from which it was not learned.

Compares the last user message of every row, case folded and with runs of white space as one space. Only
digests are in memory, 16 bytes a prompt, and only line numbers are ever shown: both files are the
operator's. Finds equal prompts, not paraphrases. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from autoclave.data.conversations import read_conversations
from autoclave.data.messages import Conversation
from autoclave.errors import OverlapError

MAX_PAIRS = 10


def refuse_overlap(realign_file: str | Path, eval_file: str | Path) -> None:
    """Raises OverlapError if a prompt is in both chat JSONL files, DataError for broken lines.

    The error says how many different prompts are in both. Its `pairs` are the lines, counted from 1, where
    the first MAX_PAIRS of them stand first in the one file and in the other.
    """
    learned = _first_lines(realign_file)
    num_shared = 0
    pairs: list[tuple[int, int]] = []
    for digest, line in _first_lines(eval_file).items():
        if digest in learned:
            num_shared += 1
            if len(pairs) < MAX_PAIRS:
                pairs.append((learned[digest], line))
    if num_shared:
        shown = ", ".join(f"{first} and {second}" for first, second in pairs)
        more = ", ..." if num_shared > len(pairs) else ""
        prompts = "1 prompt is" if num_shared == 1 else f"{num_shared} prompts are"
        raise OverlapError(
            f"{prompts} both in {realign_file} and in {eval_file} (lines {shown}{more}). What is measured on "
            "them says nothing about other prompts: delete them from one of the files, or evaluate on "
            "prompts from another source.",
            pairs,
        )


def _first_lines(file: str | Path) -> dict[bytes, int]:
    """Digest of every different prompt to the line where it stands first, in the order of the file."""
    lines: dict[bytes, int] = {}
    for line, digest in _digests(file):
        lines.setdefault(digest, line)
    return lines


def _digests(file: str | Path) -> Iterator[tuple[int, bytes]]:
    for line, conversation in enumerate(read_conversations(file, needs_answer=False), start=1):
        prompt = _last_user_text(conversation)
        if prompt is not None:
            normal = " ".join(prompt.casefold().split())
            yield line, hashlib.blake2b(normal.encode(), digest_size=16).digest()


def _last_user_text(conversation: Conversation) -> str | None:
    return next((m.text for m in reversed(conversation.messages) if m.role == "user"), None)
