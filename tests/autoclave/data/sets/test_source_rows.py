"""Rows of files, and files of a hub."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.source_rows import find_source, read_rows
from autoclave.errors import DataError, InputError
from tests.autoclave.data.sets.public_rows import beavertails, build, write_jsonl


@pytest.mark.parametrize(("suffix", "opener"), [(".gz", gzip.open), (".xz", lzma.open), (".bz2", bz2.open)])
def test_compressed_files(tmp_path: Path, suffix: str, opener: Any) -> None:
    path = tmp_path / f"x.jsonl{suffix}"
    with opener(path, "wt") as file:
        file.write('{"a": "ä"}\n')
    assert [row.values for row in read_rows(path)] == [{"a": "ä"}]
    path.write_bytes(b"not compressed")
    with pytest.raises(InputError, match="cannot be read"):
        list(read_rows(path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no file of this machine"):
        find_source(str(tmp_path / "x.jsonl"))
    unknown = tmp_path / "data.bin"
    unknown.write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot be told from its name. Known are \.csv"):
        list(read_rows(unknown))
    latin = tmp_path / "x.csv"
    latin.write_bytes(b"a,b\n\xe9,1\n")
    with pytest.raises(InputError, match="not UTF-8"):
        list(read_rows(latin))
    latin.write_text('a,b\n1,2,3\n"')
    assert [row.problem for row in read_rows(latin)] == [
        "The row has 3 columns, the header 2.",
        "The row is not valid CSV: unexpected end of data.",
    ]


@pytest.fixture
def parquet() -> Any:
    """Of the extra `dev`: where these tests are to mean something, it is there."""
    return pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: make install")


def test_parquet_gives_the_rows_that_json_gives(tmp_path: Path, parquet: Any) -> None:
    import pyarrow as pa

    # Several batches, in two row groups. A struct without fields cannot be written.
    rows = [row | {"category": {"violence": not row["is_safe"]}} for row in beavertails(3000)]
    file = tmp_path / "train.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=1700)
    read = list(read_rows(file))
    assert [row.values for row in read] == rows
    assert [row.line for row in read] == list(range(1, 3001))
    lines = write_jsonl(tmp_path / "x.jsonl", rows)
    from_json = build(lines, tmp_path / "a.jsonl", "beavertails", "alignment")
    assert build(file, tmp_path / "b.jsonl", "beavertails", "alignment") == from_json
    assert len(from_json) == 1000


def test_parquet_of_nested_columns_and_nulls(tmp_path: Path, parquet: Any) -> None:
    import pyarrow as pa

    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    file = tmp_path / "chat.parquet"
    parquet.write_table(pa.Table.from_pylist([{"messages": messages, "id": 1}, {"messages": None}]), file)
    assert [row.values["messages"] for row in read_rows(file)] == [messages, None]
    with pytest.raises(DataError, match=r"row 2|line 2"):
        build(file, tmp_path / "bad.jsonl", "chat", "training")
    assert not (tmp_path / "bad.jsonl").exists()
    parquet.write_table(pa.Table.from_pylist([{"messages": messages}] * 12), file)
    assert build(file, tmp_path / "good.jsonl", "chat", "training") == [messages] * 12


def test_broken_parquet_is_named(tmp_path: Path, parquet: Any) -> None:
    import pyarrow as pa

    file = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"prompt": [f"prompt {i}" for i in range(50)]}), file)
    whole = file.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], b"PAR1" + bytes(100) + b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
            list(read_rows(file))
    # The footer is whole, a page is not.
    file.write_bytes(whole[:10] + bytes(100) + whole[110:])
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as Parquet"):
        list(read_rows(file))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"needs pyarrow.*autoclave\[parquet\]"):
        list(read_rows(tmp_path / "x.parquet"))


def test_a_file_of_a_hub_that_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    commit = "d" * 40
    folder = cache / "datasets--acme--tails"
    snapshot = folder / "snapshots" / commit / "round0"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    write_jsonl(snapshot / "train.jsonl", beavertails(6))
    source = find_source("hub:acme/tails/round0/train.jsonl", "main")
    manifest = build_set(source, tmp_path / "a.jsonl", Request("beavertails", "alignment"))
    assert manifest["source"]["name"] == "acme/tails/round0/train.jsonl"
    assert manifest["source"]["revision"] == commit
    with pytest.raises(
        InputError, match=r"hf download acme/tails test\.jsonl --repo-type dataset --revision"
    ):
        find_source("hub:acme/tails/test.jsonl", commit)
    with pytest.raises(InputError, match="needs --revision"):
        find_source("hub:acme/tails/test.jsonl")
    with pytest.raises(InputError, match="does not name a file of a hub"):
        find_source("hub:acme/tails", "main")
