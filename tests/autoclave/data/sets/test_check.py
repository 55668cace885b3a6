"""Prompts repeated within a set and shared between two, against comparing all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.check import (
    check_sets,
    near_repeats,
    read_prompt_set,
    refuse_overlaps,
    shared_prompts,
)
from autoclave.data.sets.near_duplicates import normal_form
from autoclave.data.sets.source_rows import find_source
from autoclave.errors import DataError, InputError, OverlapError
from tests.autoclave.data.sets.reference import slow_near
from tests.autoclave.data.sets.test_near_duplicates import texts


def write(path: Path, prompts: list[str]) -> Path:
    rows = (
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": "a"}]} for p in prompts
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_those_of_comparing_everything(tmp_path: Path, seed: int) -> None:
    prompts = [text for text in texts(seed, 160) if text]
    random.Random(seed).shuffle(prompts)
    first, second = prompts[:100], prompts[60:]
    a = read_prompt_set(write(tmp_path / "a.jsonl", first))
    b = read_prompt_set(write(tmp_path / "b.jsonl", second))
    found = shared_prompts(a, b, threshold=0.6)
    different = list(dict.fromkeys(second))
    assert found["exact"] == sum(text in first for text in different) > 0
    assert found["near"] == sum(bool(slow_near(t, first, 0.6)) and t not in first for t in different) > 0
    for pair in found["lines"]:
        one, other = first[pair["first"] - 1], second[pair["second"] - 1]
        assert dict(slow_near(other, [one], 0.6))[0] == pytest.approx(pair["similarity"], abs=1e-3)
    own = list(dict.fromkeys(first))
    repeats = sum(bool(slow_near(text, own[:i], 0.6)) for i, text in enumerate(own))
    assert near_repeats(a, threshold=0.6) == repeats > 0


def test_what_matters_is_refused_and_the_rest_reported(tmp_path: Path) -> None:
    prompts = [f"placeholder about {word} things in general" for word in ("red", "blue", "tall")] * 3
    files = {}
    for kind in ("alignment", "realignment", "evaluation"):
        source = write(tmp_path / "source.jsonl", [*prompts, f"a prompt of {kind} alone"])
        build_set(find_source(str(source)), tmp_path / f"{kind}.jsonl", Request("chat", kind))
        files[kind] = tmp_path / f"{kind}.jsonl"
    trained = check_sets([files["alignment"], files["realignment"]])
    [overlap] = trained["overlaps"]
    assert (overlap["exact"], overlap["matters"]) == (3, False)
    assert [each["kind"] for each in trained["sets"]] == ["alignment", "realignment"]
    assert trained["sets"][0]["repeated"] == 6
    refuse_overlaps(trained)
    with pytest.raises(OverlapError, match=r"3 prompts are in both .*--apart-from") as raised:
        refuse_overlaps(check_sets([files["realignment"], files["evaluation"]]))
    assert raised.value.pairs == [(1, 1), (2, 2), (3, 3)]
    assert "placeholder" not in str(raised.value), "prompts must not spread"


def test_near_prompts_alone_are_refused_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", ["tell me about the old lighthouse keeper"])
    b = write(tmp_path / "b.jsonl", ["Tell me about the old lighthouse keepers!", "something else"])
    checked = check_sets([a, b])
    assert checked["overlaps"][0]["near"] == 1
    with pytest.raises(OverlapError, match="1 are nearly the same"):
        refuse_overlaps(checked)
    refuse_overlaps(check_sets([a, b], threshold=1.0))


def test_files_that_are_not_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{}\n")
    with pytest.raises(DataError):
        check_sets([tmp_path / "x.jsonl"])
    build_set(
        find_source(str(write(tmp_path / "s.jsonl", ["a"]))),
        tmp_path / "t.jsonl",
        Request("chat", "evaluation"),
    )
    write(tmp_path / "t.jsonl", ["b"])
    with pytest.raises(InputError, match="not what its manifest says"):
        check_sets([tmp_path / "t.jsonl"])


def test_the_normal_form_decides_what_is_the_same(tmp_path: Path) -> None:
    [found] = check_sets([write(tmp_path / "a.jsonl", ["Hello, world", "hello WORLD!", "other"])])["sets"]
    assert (found["prompts"], found["repeated"]) == (3, 1)
    assert normal_form("Hello, world") == normal_form("hello WORLD!")
