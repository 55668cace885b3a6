"""Tokens are made once per data, tokenizer, template and settings, and never taken from a damaged entry."""

import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from autoclave.data import token_cache
from autoclave.data.conversations import read_conversations
from autoclave.data.token_cache import TokenCache
from autoclave.data.tokens import Encoded, encode
from autoclave.errors import DataError, InputError
from tests.autoclave.tiny import tiny_tokenizer
from tests.builders import chat_line


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(chat_line(f"question {i}", "answer " * (i + 1)) for i in range(12)) + "\n")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every time that the data was tokenised."""
    made: list[int] = []

    def counted(*arguments: Any, **settings: Any) -> Encoded:
        made.append(1)
        return encode(*arguments, **settings)

    monkeypatch.setattr(token_cache, "encode", counted)
    return made


def same(one: Encoded, other: Encoded) -> bool:
    pairs = list(zip(one.examples, other.examples, strict=True))
    return (one.num_truncated, one.num_dropped) == (other.num_truncated, other.num_dropped) and all(
        np.array_equal(a.input_ids, b.input_ids)
        and np.array_equal(a.labels, b.labels)
        and a.labels.dtype == b.labels.dtype
        for a, b in pairs
    )


def test_what_is_kept_is_what_encode_gives(
    tokenizer: Any, data: Path, tmp_path: Path, calls: list[int]
) -> None:
    plain = encode(tokenizer, read_conversations(data), max_seq_length=60)
    assert plain.num_truncated
    for _ in range(3):  # each with a cache of its own, as other processes have
        assert same(TokenCache(tmp_path / "cache").encoded(tokenizer, data, max_seq_length=60), plain)
    assert len(calls) == 1
    (entry,) = (tmp_path / "cache").iterdir()
    assert entry.stat().st_mode & 0o077 == 0
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_everything_the_tokens_depend_on_is_in_the_key(
    tokenizer: Any, data: Path, tmp_path: Path, calls: list[int]
) -> None:
    cache = TokenCache(tmp_path / "cache")
    settings: list[dict[str, Any]] = [
        {"max_seq_length": 99},
        {"max_seq_length": 98},
        {"max_seq_length": 99, "train_on_inputs": True},
    ]
    for each in settings * 2:
        assert same(
            cache.encoded(tokenizer, data, **each), encode(tokenizer, read_conversations(data), **each)
        )
    assert len(calls) == 3
    other_template, other_vocabulary = tiny_tokenizer(), tiny_tokenizer()
    other_template.chat_template = " " + other_template.chat_template
    other_vocabulary.add_tokens(["answer"])
    for other in (other_template, other_vocabulary) * 2:
        cache.encoded(other, data, max_seq_length=99)
    assert len(calls) == 5
    data.write_text(data.read_text() + chat_line("one", "more") + "\n")
    assert len(cache.encoded(tokenizer, data, max_seq_length=99).examples) == 13


def test_a_template_with_the_date_is_another_one_tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    dated = tiny_tokenizer()
    dated.chat_template = "{# strftime_now #}" + dated.chat_template
    today = token_cache.cache_key(dated, "", {})
    plain = token_cache.cache_key(tiny_tokenizer(), "", {})
    monkeypatch.setattr(time, "strftime", lambda _: "2199-01-01")
    assert token_cache.cache_key(dated, "", {}) != today
    assert token_cache.cache_key(tiny_tokenizer(), "", {}) == plain


def test_a_damaged_entry_is_made_anew(
    tokenizer: Any, data: Path, tmp_path: Path, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    cache = TokenCache(tmp_path / "cache")
    plain = cache.encoded(tokenizer, data, max_seq_length=99)
    (entry,) = cache.folder.iterdir()
    whole = entry.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # still a file that safetensors reads
    for number, damaged in enumerate((b"", whole[:-7], bytes(flipped), b"\xff" * len(whole)), 2):
        entry.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert same(cache.encoded(tokenizer, data, max_seq_length=99), plain)
        assert "damaged" in caplog.text
        caplog.clear()
        assert len(calls) == number
        assert same(cache.encoded(tokenizer, data, max_seq_length=99), plain)
        assert len(calls) == number, "it is whole again"


def test_entries_expire_and_the_oldest_go_first(
    tokenizer: Any, data: Path, tmp_path: Path, calls: list[int]
) -> None:
    cache = TokenCache(tmp_path / "cache", max_age_seconds=100)
    cache.encoded(tokenizer, data, max_seq_length=99)
    (entry,) = cache.folder.iterdir()
    abandoned = cache.folder / ".x.partial"
    abandoned.touch()
    for old in (entry, abandoned):
        os.utime(old, (0, time.time() - 7200))
    cache.encoded(tokenizer, data, max_seq_length=99)
    assert len(calls) == 2
    assert list(cache.folder.iterdir()) == [entry]
    size = entry.stat().st_size
    os.utime(entry, (0, time.time() - 40))
    small = TokenCache(cache.folder, max_bytes=2 * size + size // 2)
    for age, length in ((30, 98), (20, 97), (0, 96)):
        before = set(cache.folder.iterdir())
        small.encoded(tokenizer, data, max_seq_length=length)
        (new,) = set(cache.folder.iterdir()) - before
        os.utime(new, (0, time.time() - age))
    kept = [small.encoded(tokenizer, data, max_seq_length=length) for length in (97, 96)]
    assert len(calls) == 5, "the two newest were still there"
    assert len(kept[0].examples) == 12
    assert len(list(cache.folder.iterdir())) == 2
    none = TokenCache(tmp_path / "none", max_bytes=10)
    none.encoded(tokenizer, data, max_seq_length=99)
    assert list(none.folder.iterdir()) == []


def test_what_is_refused_is_refused_each_time_and_a_full_disk_stops_nothing(
    tokenizer: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TokenCache(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(DataError):
            cache.encoded(tokenizer, data, max_seq_length=20, too_long="refuse")
    assert list(cache.folder.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache, "save_file", full)
    assert cache.encoded(tokenizer, data, max_seq_length=99).examples
    assert list(cache.folder.iterdir()) == []


def test_a_folder_that_others_may_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(InputError, match="chmod 700"):
        TokenCache(tmp_path / "open")


def test_a_hit_is_much_cheaper(tokenizer: Any, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(chat_line(f"question {i}", "word " * 60) for i in range(600)) + "\n")
    cache = TokenCache(tmp_path / "cache")
    seconds = []
    for _ in range(4):
        began = time.process_time()
        cache.encoded(tokenizer, data, max_seq_length=999)
        seconds.append(time.process_time() - began)
    assert min(seconds[1:]) < seconds[0] / 4, seconds


def _fill(folder: Path, data: Path, start: Barrier) -> None:
    start.wait()
    for _ in range(3):
        for length in (99, 98):
            found = TokenCache(folder).encoded(tiny_tokenizer(), data, max_seq_length=length)
            assert len(found.examples) == 12


def test_threads_may_share_a_folder(data: Path, tmp_path: Path) -> None:
    start = Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(_fill, tmp_path / "cache", data, start) for _ in range(4)]:
            done.result()
    assert len(list((tmp_path / "cache").iterdir())) == 2
