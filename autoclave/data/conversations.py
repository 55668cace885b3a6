"""Chat datasets: one JSON object per line, in the format of OpenAI's fine-tuning files.

    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}

Reads files, and checks them while they are still arriving, in constant memory. `fast_lines.py` counts
valid lines; where it stops, the line is decoded into the typed objects of `messages.py`; and only a line
that fails there is looked at slowly, by `rules.py`, to name what is wrong and where. No templates and no
tokens here, and no torch: the API process imports this module.

Decided here, because the format does not say:
- A UTF-8 byte-order mark at the start is skipped. Lines end with LF or CRLF; the last one may lack its end.
- Blank lines are allowed at the end of the file and refused elsewhere, so that line N is example N.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import msgspec

from autoclave.data.fast_lines import FastLines
from autoclave.data.messages import Conversation, Message, decode_line
from autoclave.data.rules import explain_refused
from autoclave.errors import DataError, DataIssue

__all__ = [
    "Conversation",
    "ConversationChecker",
    "DatasetSummary",
    "Message",
    "check_file",
    "read_conversations",
]

MIN_EXAMPLES = 10
MAX_ISSUES = 50
MAX_LINE_BYTES = 1_048_576
UTF8_BOM = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 16
_LINES_AFTER_STOP = 8


class DatasetSummary(msgspec.Struct, frozen=True):
    """`bytes` and `sha256` are of the file as it came, byte-order mark and line ends included."""

    num_examples: int
    num_messages: int
    bytes: int
    sha256: str


class ConversationChecker:
    """Checks a dataset while it arrives: `feed` any chunks of bytes, then `finish` once.

    Holds at most one line and `max_issues` issues in memory, whatever the size of the file.
    A line longer than `max_line_bytes` (its end not counted) is an issue and is skipped, not kept.
    `on_example` is called with the number and the conversation of every valid line, at the cost of the
    speed.
    """

    def __init__(
        self,
        *,
        min_examples: int = MIN_EXAMPLES,
        max_issues: int = MAX_ISSUES,
        max_line_bytes: int = MAX_LINE_BYTES,
        needs_answer: bool = True,
        on_example: Callable[[int, Conversation], object] | None = None,
    ) -> None:
        self._min_examples = min_examples
        self._max_issues = max_issues
        self._max_line_bytes = max_line_bytes
        self._needs_answer = needs_answer
        self._on_example = on_example
        self._block_bytes = min(_BLOCK_BYTES, max_line_bytes)  # no line of a block is too long
        self._fast = FastLines(needs_answer=needs_answer)
        self._issues: list[DataIssue] = []
        self._num_issues = 0
        self._pending = bytearray()  # the start of a line whose end has not arrived
        self._skipping = False  # inside a line that is already too long
        self._line_number = 0
        self._blank_lines: list[int] = []  # [first, count] of blank lines that may turn out to be trailing
        self._num_examples = 0
        self._num_messages = 0
        self._num_bytes = 0
        self._digest = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        """Never raises for what is in the data; `finish` does."""
        self._digest.update(chunk)
        self._num_bytes += len(chunk)
        start = 0
        while True:
            # The first line may begin with a byte-order mark, and a line that has begun has no block.
            if self._pending or self._skipping or self._line_number == 0 or self._on_example:
                end = -1
            else:
                end = chunk.rfind(b"\n", start, start + self._block_bytes)
            if end >= 0:
                self._check_block(chunk[start:end])
            else:
                end = chunk.find(b"\n", start)
                self._append(chunk[start:] if end < 0 else chunk[start:end])
                if end < 0:
                    return
                self._end_line()
            start = end + 1

    def finish(self) -> DatasetSummary:
        """Raises DataError with the first issues and the count of all of them."""
        self.end()
        if self._line_number == 0 or (self._num_examples == 0 and self._num_issues == 0):
            self._report(
                DataIssue(0, "", "empty_file", "The file is empty.", "Put one example on each line.")
            )
        elif self._num_examples < self._min_examples and self._num_issues == 0:
            self._report(
                DataIssue(
                    0,
                    "",
                    "too_few_examples",
                    f"The file has {self._num_examples} examples; at least {self._min_examples} are needed.",
                    "Add more examples, one JSON object per line.",
                )
            )
        if self._issues:
            raise DataError(self._issues, self._num_issues)
        return DatasetSummary(
            num_examples=self._num_examples,
            num_messages=self._num_messages,
            bytes=self._num_bytes,
            sha256=self._digest.hexdigest(),
        )

    def end(self) -> None:
        """The last line may lack its end: it is checked now. `finish` does this too, and judges the file."""
        if self._pending or self._skipping:
            self._end_line()

    def _check_block(self, block: bytes) -> None:
        """Whole lines, without the end of the last."""
        lines = block.split(b"\n")
        start, window = 0, len(lines)
        while start < len(lines):
            some = lines[start : start + window]
            num_lines, num_messages = self._fast.count_valid(some)
            if num_lines:
                self._report_blank_lines()
                self._line_number += num_lines
                self._num_examples += num_lines
                self._num_messages += num_messages
            start += num_lines
            if num_lines == len(some):
                window *= 2
                continue
            self._pending += lines[start]
            self._end_line()
            start += 1
            # Few lines at a time after one that stopped the counting: a file may be wrong in all lines.
            window = _LINES_AFTER_STOP

    def _append(self, part: bytes) -> None:
        if self._skipping:
            return
        self._pending += part
        # Grace, because a carriage return belongs to the line end and a byte-order mark to the file.
        if len(self._pending) > self._max_line_bytes + 1 + len(UTF8_BOM):
            self._skipping = True
            self._pending.clear()

    def _end_line(self) -> None:
        self._line_number += 1
        line = bytes(self._pending)
        too_long = self._skipping
        self._pending.clear()
        self._skipping = False
        if self._line_number == 1:
            line = line.removeprefix(UTF8_BOM)
        line = line.removesuffix(b"\r")
        if too_long or len(line) > self._max_line_bytes:
            self._report_blank_lines()
            self._report(
                DataIssue(
                    self._line_number,
                    "",
                    "line_too_long",
                    f"The line is longer than {self._max_line_bytes} bytes.",
                    "Split the example, or drop it.",
                )
            )
        elif not line.strip():
            if self._blank_lines:
                self._blank_lines[1] += 1
            else:
                self._blank_lines = [self._line_number, 1]
        else:
            self._report_blank_lines()
            self._check(line)

    def _check(self, line: bytes) -> None:
        conversation = decode_line(line, needs_answer=self._needs_answer)
        if conversation is not None:
            self._num_examples += 1
            self._num_messages += len(conversation.messages)
            if self._on_example is not None:
                self._on_example(self._line_number, conversation)
            return
        for issue in explain_refused(line, self._line_number, needs_answer=self._needs_answer):
            self._report(issue)

    def _report_blank_lines(self) -> None:
        if not self._blank_lines:
            return
        first, count = self._blank_lines
        self._blank_lines = []
        for line_number in range(first, first + min(count, self._max_issues)):
            self._report(DataIssue(line_number, "", "blank_line", "The line is blank.", "Delete the line."))
        self._num_issues += count - min(count, self._max_issues)

    def _report(self, issue: DataIssue) -> None:
        self._num_issues += 1
        if len(self._issues) < self._max_issues:
            self._issues.append(issue)


def check_file(
    path: str | Path,
    *,
    min_examples: int = MIN_EXAMPLES,
    max_issues: int = MAX_ISSUES,
    max_line_bytes: int = MAX_LINE_BYTES,
    needs_answer: bool = True,
) -> DatasetSummary:
    """Checks a whole file. Raises DataError naming the file and every issue found."""
    checker = ConversationChecker(
        min_examples=min_examples,
        max_issues=max_issues,
        max_line_bytes=max_line_bytes,
        needs_answer=needs_answer,
    )
    with open(path, "rb") as file:
        while chunk := file.read(_READ_BYTES):
            checker.feed(chunk)
    try:
        return checker.finish()
    except DataError as error:
        raise DataError(error.issues, error.num_issues, str(path)) from None


def read_conversations(path: str | Path, *, needs_answer: bool = True) -> Iterator[Conversation]:
    """The conversations of a file, in order, one at a time. Raises DataError at the first broken line."""
    blank_line = 0
    with open(path, "rb") as file:
        for line_number, raw in enumerate(file, start=1):
            line = raw.removeprefix(UTF8_BOM) if line_number == 1 else raw
            if not line.strip():
                blank_line = blank_line or line_number
                continue
            if blank_line:
                issue = DataIssue(blank_line, "", "blank_line", "The line is blank.", "Delete the line.")
                raise DataError([issue], source=str(path))
            conversation = decode_line(line, needs_answer=needs_answer)
            if conversation is None:
                issues = explain_refused(line, line_number, needs_answer=needs_answer)
                raise DataError(list(islice(issues, MAX_ISSUES)), source=str(path))
            yield conversation
