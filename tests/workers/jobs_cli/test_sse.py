"""Reading server-sent events, cut into pieces of any size."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from workers.jobs_cli.sse import ServerEvent, lines, parse

STREAM = (
    'retry: 2000\n\nid: a\ndata: {"x": 1}\n\n: waiting\n\n'
    "id: b\r\ndata:one\r\ndata: two\r\n\r\nid: c\ndata: cut off"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    sent = STREAM.encode()
    ends = [0, *sorted(cuts), len(sent)]
    pieces = [sent[start:stop] for start, stop in pairwise(ends)]
    assert list(parse(lines(pieces))) == [ServerEvent("a", '{"x": 1}'), ServerEvent("b", "one\ntwo")]


@given(st.text().filter(lambda text: "\n" not in text and "\r" not in text))
def test_only_a_line_feed_ends_a_line(text: str) -> None:
    """Python's own splitting also takes U+2028 and others, which JSON leaves as they are."""
    sent = f"id: 1\ndata: {text}\n\n".encode()
    pieces = [sent[i : i + 1] for i in range(len(sent))]
    assert list(parse(lines(pieces))) == [ServerEvent("1", text)]
