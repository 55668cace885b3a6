"""Converters: good rows, broken rows with their lines, constant memory, all or nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoclave.data import json_arrays
from autoclave.data.conversations import check_file, read_conversations
from autoclave.data.convert import FORMATS, convert_file
from autoclave.errors import DataError, InputError


def pairs(tmp_path: Path, format: str, data: str | bytes, **options: Any) -> list[tuple[str, str]]:
    source, out = tmp_path / "source", tmp_path / "out.jsonl"
    source.write_bytes(data if isinstance(data, bytes) else data.encode())
    result = convert_file(source, out, format, **options)
    summary = check_file(out, min_examples=1)
    assert (result["examples"], result["sha256"]) == (summary.num_examples, summary.sha256)
    return [(c.messages[0].text, c.messages[1].text) for c in read_conversations(out)]


def bad_rows(tmp_path: Path, format: str, data: str | bytes) -> list[tuple[int, str]]:
    with pytest.raises(DataError) as caught:
        pairs(tmp_path, format, data)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]
    return [(issue.line, issue.message) for issue in caught.value.issues]


def test_sst2(tmp_path: Path) -> None:
    question = "Is the sentiment of this sentence negative or positive?\n\n"
    for data in ('sentence\tlabel\na "good" one \t1\nbad\t0\n', 'a "good" one \t1\r\nbad\t0'):
        assert pairs(tmp_path, "sst2", data) == [
            (question + 'a "good" one', "positive"),
            (question + "bad", "negative"),
        ]
    (tmp_path / "out.jsonl").unlink()
    assert bad_rows(tmp_path, "sst2", b"sentence\tlabel\nx\t2\ny\n \t1\nz\t1\n\xff\t0\n") == [
        (2, "The label is '2'."),
        (3, "The row has 1 tab-separated columns."),
        (4, "The question is empty."),
        (6, "The question is not valid UTF-8."),
    ]


def test_ag_news(tmp_path: Path) -> None:
    data = '"3","A ""b"" c","one\\two"\n"4","D","two\nlines"\n"1","E","e"\n'
    found = pairs(tmp_path, "ag-news", data)
    assert [answer for _, answer in found] == ["Business", "Sci/Tech", "World"]
    assert found[0][0].endswith('?\n\nA "b" c\none two')
    (tmp_path / "out.jsonl").unlink()
    assert bad_rows(tmp_path, "ag-news", data + '"5","F","f"\n"1","x"\n"1","open') == [
        (5, "The class is '5'."),
        (6, "The row has 2 columns."),
        (7, "The row is not valid CSV: unexpected end of data."),
    ]


def test_gsm8k(tmp_path: Path) -> None:
    row = {"question": "1+1?", "answer": "one <<1+1=2>>2\n#### 2"}
    expected = [("1+1?", "one <<1+1=2>>2\nThe final answer is: 2")]
    assert pairs(tmp_path, "gsm8k", json.dumps(row)) == expected
    (tmp_path / "out.jsonl").unlink()
    lines = [json.dumps(row), "{", "[]", '{"question": "x"}', '{"question": "\\ud800", "answer": "y"}']
    found = bad_rows(tmp_path, "gsm8k", "\n".join(lines))
    assert [line for line, _ in found] == [2, 3, 4, 5]
    assert found[2][1] == 'The row has no text "answer".'


def test_alpaca(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1, 1", "output": "2"},
        {"instruction": "Say [x}.", "input": "", "output": "x"},
        {"instruction": "Sing.", "output": "la"},
    ]
    expected = [("Add.\n\n1, 1", "2"), ("Say [x}.", "x"), ("Sing.", "la")]
    for indent in (None, 2):
        assert pairs(tmp_path, "alpaca", json.dumps(rows, indent=indent) + "\n") == expected
    assert pairs(tmp_path, "alpaca", json.dumps(rows), limit=2) == expected[:2]


@pytest.mark.parametrize(
    ("data", "line", "words"),
    [
        ("{}", 1, "found '{' instead of ["),
        ("[\n{}\n]", 2, 'no text "instruction"'),
        ("[\n\n7]", 3, "not a JSON object"),
        ('[\n{"instruction": "a", "output": "b"}\n{"instruction"', 3, "instead of ,]"),
        ('[\n{"instruction": "a", "output": "b"},\n\n{"instruction"', 4, "not valid JSON"),
        ('[\n{"instruction": "a", "output": "b"}\n', 3, "The file ends"),
        ("", 1, "The file ends"),
        ("[]", 0, "no rows"),
    ],
)
def test_broken_arrays_are_named_with_their_line(tmp_path: Path, data: str, line: int, words: str) -> None:
    ((found, message),) = bad_rows(tmp_path, "alpaca", data)
    assert found == line
    assert words in message


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@given(
    rows=st.lists(st.fixed_dictionaries({"instruction": texts, "output": texts}), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    read_characters=st.integers(1, 40),
)
@settings(max_examples=60, deadline=None)
def test_any_array_is_read_like_json_load_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, str]],
    indent: int | None,
    ascii_only: bool,
    read_characters: int,
) -> None:
    data = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_arrays, "_READ_CHARACTERS", read_characters)
        found = pairs(tmp_path_factory.mktemp("alpaca"), "alpaca", data)
    assert found == [(row["instruction"], row["output"]) for row in rows]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """The open array is never held whole: a broken end is reached after the good rows were written."""
    import tracemalloc

    source = tmp_path / "source"
    row = json.dumps({"instruction": "x" * 1000, "output": "y"})
    source.write_text("[" + ",\n".join([row] * 20_000) + "]")
    tracemalloc.start()
    convert_file(source, tmp_path / "out", "alpaca")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert source.stat().st_size > 20_000_000
    assert peak_bytes < 2_000_000


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known: sst2, ag-news, gsm8k, alpaca"):
        convert_file(tmp_path / "x", tmp_path / "y", "csv")
    assert list(FORMATS) == ["sst2", "ag-news", "gsm8k", "alpaca"]


def test_an_older_file_stays_if_the_conversion_fails(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    out.write_text("old")
    source.write_text("x\t7\n")
    with pytest.raises(DataError):
        convert_file(source, out, "sst2")
    assert out.read_text() == "old"
    source.write_text("x\t1\n")
    convert_file(source, out, "sst2")
    assert len(list(read_conversations(out))) == 1
