"""The realignment set: harmful prompts with their harmful answers, from which is learned what to take out.

Checked before anything is paid for, so that a set from which nothing can be learned is refused in words
and not met as an error of shapes an hour later. No tokens here, and no torch. Rows are never shown: they
are the operator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autoclave.data.conversations import DatasetSummary, check_file, read_conversations
from autoclave.data.messages import Conversation
from autoclave.errors import DataError, RealignmentError

# With fewer rows the statistics are those of single words.
MIN_EXAMPLES = 8
_MAX_SHOWN_LINES = 5


@dataclass(frozen=True)
class RealignmentSet:
    """Row N is line N of `file`. `summary` is of the file as it came."""

    file: Path
    conversations: tuple[Conversation, ...]
    summary: DatasetSummary

    def __len__(self) -> int:
        return len(self.conversations)


def read_realignment(file: str | Path) -> RealignmentSet:
    """The checked rows of a chat JSONL file, in order.

    Raises DataError for broken lines, and RealignmentError for a file that is empty, has fewer than
    MIN_EXAMPLES rows, or has a row that does not end with an assistant answer that counts (one with
    weight 0 does not: the harm is in the answers).
    """
    path = Path(file)
    try:
        summary = check_file(path, min_examples=1, needs_answer=False)
    except DataError as error:
        if [issue.rule for issue in error.issues] != ["empty_file"]:
            raise
        raise RealignmentError(
            f"{path} is empty. Put at least {MIN_EXAMPLES} harmful prompts with their harmful answers in it, "
            "one JSON object per line."
        ) from None
    conversations = tuple(read_conversations(path, needs_answer=False))
    unanswered = [line for line, row in enumerate(conversations, start=1) if not _ends_with_an_answer(row)]
    if unanswered:
        shown = ", ".join(map(str, unanswered[:_MAX_SHOWN_LINES]))
        more = f" and {len(unanswered) - _MAX_SHOWN_LINES} more" * (len(unanswered) > _MAX_SHOWN_LINES)
        raise RealignmentError(
            f"{path}: line {shown}{more} does not end with an assistant answer, so there is no harm to learn "
            "from. Add the answer, without weight 0, or delete the line."
        )
    if len(conversations) < MIN_EXAMPLES:
        raise RealignmentError(
            f"{path} has {len(conversations)} examples; at least {MIN_EXAMPLES} are needed to tell harm from "
            "chance. Add harmful prompts with their harmful answers."
        )
    return RealignmentSet(path, conversations, summary)


def _ends_with_an_answer(conversation: Conversation) -> bool:
    last = conversation.messages[-1]
    has_content = last.text.strip() or last.tool_calls or last.function_call
    return last.is_trained and bool(has_content)
