"""A realignment set is refused in words when nothing can be learned from it, and never shown."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoclave.data.conversations import read_conversations
from autoclave.data.realignment import MIN_EXAMPLES, read_realignment
from autoclave.errors import DataError, InputError, RealignmentError
from autoclave.hashing import file_sha256

ASK = {"role": "user", "content": "secret question"}
ANSWER = {"role": "assistant", "content": "secret answer"}
CALL = {"id": "c1", "type": "function", "function": {"name": "zap", "arguments": "{}"}}


def write(folder: Path, rows: list[list[dict[str, Any]]]) -> Path:
    file = folder / "realign.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def numbered(count: int) -> list[list[dict[str, Any]]]:
    return [[ASK | {"content": f"q {i}"}, ANSWER | {"content": f"a {i}"}] for i in range(count)]


def refusal(file: Path) -> str:
    with pytest.raises(RealignmentError) as caught:
        read_realignment(file)
    assert isinstance(caught.value, InputError)
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_the_rows_of_the_file_in_order(tmp_path: Path) -> None:
    file = write(tmp_path, numbered(MIN_EXAMPLES))
    realign = read_realignment(str(file))
    assert len(realign) == realign.summary.num_examples == 8
    assert list(realign.conversations) == list(read_conversations(file))
    assert (realign.file, realign.summary.sha256) == (file, file_sha256(file))


@pytest.mark.parametrize(
    "row",
    [
        [{"role": "system", "content": "s"}, ASK, ANSWER, ASK, ANSWER],
        [ASK, ANSWER | {"weight": 1}],
        [ASK, ANSWER | {"weight": 0}, ASK, ANSWER],
        [ASK, {"role": "assistant", "tool_calls": [CALL]}],
    ],
)
def test_rows_that_end_with_an_answer(tmp_path: Path, row: list[dict[str, Any]]) -> None:
    assert len(read_realignment(write(tmp_path, [*numbered(8), row]))) == 9


@pytest.mark.parametrize(
    "row",
    [
        [ASK],
        [ASK, ANSWER, ASK],
        [ASK, ANSWER | {"weight": 0}],
        [ASK, ANSWER, ASK, ANSWER | {"weight": 0}],
        [ASK, ANSWER | {"content": " \n"}],
        [
            ASK,
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
    ],
)
def test_a_row_that_does_not_is_named_by_its_line(tmp_path: Path, row: list[dict[str, Any]]) -> None:
    words = refusal(write(tmp_path, [*numbered(3), row, *numbered(8)]))
    assert "line 4 does not end with an assistant answer" in words
    assert "Add the answer" in words


def test_many_such_rows_are_counted(tmp_path: Path) -> None:
    assert "line 1, 2, 3, 4, 5 and 4 more does not end" in refusal(write(tmp_path, [[ASK]] * 9))
    assert "line 1, 2, 3, 4, 5 does not end" in refusal(write(tmp_path, [[ASK]] * 5))


@pytest.mark.parametrize("count", [1, MIN_EXAMPLES - 1])
def test_too_few_rows(tmp_path: Path, count: int) -> None:
    words = refusal(write(tmp_path, numbered(count)))
    assert f"has {count} examples; at least 8 are needed" in words
    assert "Add harmful prompts" in words


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_an_empty_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "realign.jsonl"
    file.write_bytes(content)
    assert "is empty. Put at least 8 harmful prompts" in refusal(file)


def test_a_broken_line_is_the_usual_data_error(tmp_path: Path) -> None:
    file = write(tmp_path, numbered(8))
    file.write_text(file.read_text() + '{"prompt": "p"}\n')
    with pytest.raises(DataError) as caught:
        read_realignment(file)
    assert [(issue.line, issue.rule) for issue in caught.value.issues] == [(9, "missing_messages")]
    assert caught.value.source == str(file)


def test_no_torch() -> None:
    code = "import sys, autoclave.data.realignment, autoclave.data.overlap; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
