"""The prompts of a set: the last message of a user in each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.messages import Conversation


def read_prompt_texts(file: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every line that has one. Raises DataError for a broken file."""
    check_file(file, min_examples=1, needs_answer=False)
    for line, conversation in enumerate(read_conversations(file, needs_answer=False), start=1):
        text = last_user_text(conversation)
        if text:
            yield line, text


def last_user_text(conversation: Conversation) -> str | None:
    return next((m.text for m in reversed(conversation.messages) if m.role == "user"), None)
