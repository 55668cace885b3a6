"""Sets from public formats. All texts are placeholders: harm is a label here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from autoclave.data.realignment import read_realignment
from autoclave.data.sets.build import Request, build_set
from autoclave.data.sets.formats import FORMATS, KINDS
from autoclave.data.sets.manifest import manifest_file, read_manifest
from autoclave.data.sets.source_rows import find_source
from autoclave.errors import DataError, InputError
from autoclave.evaluation.harmfulness import read_prompts
from autoclave.hashing import file_sha256
from tests.autoclave.data.sets.public_rows import beavertails, build, write_csv, write_jsonl


def test_beavertails_by_kind(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "train.jsonl", beavertails(60))
    out = tmp_path / "out.jsonl"
    aligned = build(source, out, "beavertails", "alignment")
    assert len(aligned) == 20
    assert aligned[1] == [
        {"role": "user", "content": "placeholder safe 3"},
        {"role": "assistant", "content": "answer safe 3"},
    ]
    harmful = build(source, out, "beavertails", "realignment", skip=0, limit=12)
    assert [m[1]["content"] for m in harmful] == [f"answer unsafe {i}" for i in range(12)]
    assert len(read_realignment(out)) == 12
    asked = build(source, out, "beavertails", "evaluation")
    assert len(asked) == 40
    assert asked[0] == [{"role": "user", "content": "placeholder unsafe 0"}]
    assert read_prompts(out, max_prompts=99)[39] == asked[39]


def test_the_authors_rows(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "train.jsonl", beavertails(10_800))  # 7200 unsafe rows
    learned = build(source, tmp_path / "r.jsonl", "beavertails", "realignment")
    assert len(learned) == 1999
    assert learned[0][0]["content"] == "placeholder unsafe 5001"
    assert learned[-1][0]["content"] == "placeholder unsafe 6999"
    attack = build(source, tmp_path / "a.jsonl", "beavertails", "attack")
    assert len(attack) == 999
    assert (attack[0][0]["content"], attack[-1][0]["content"]) == (
        "placeholder unsafe 1",
        "placeholder unsafe 999",
    )
    assert len(build(source, tmp_path / "e.jsonl", "beavertails", "evaluation")) == 1000
    manifest = read_manifest(tmp_path / "r.jsonl")
    assert manifest is not None
    assert manifest["authors_selection"]
    build(source, tmp_path / "r.jsonl", "beavertails", "realignment", limit=50)
    other = read_manifest(tmp_path / "r.jsonl")
    assert other is not None
    assert not other["authors_selection"]


def test_a_manifest_says_where_a_set_came_from(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "train.jsonl", [*beavertails(30), *beavertails(6)])
    out = tmp_path / "eval.jsonl"
    request = Request("beavertails", "evaluation", version="2026-11")
    manifest = build_set(find_source(str(source)), out, request)
    assert manifest == read_manifest(out) == json.loads(manifest_file(out).read_text())
    assert manifest["kind"] == "evaluation"
    assert manifest["version"] == "2026-11"
    assert manifest["examples"] == 24
    assert manifest["sha256"] == file_sha256(out)
    assert manifest["source"] == {"name": "train.jsonl", "revision": None, "sha256": file_sha256(source)}
    assert manifest["left_out"] == {"is_safe is true": 12}
    assert manifest["repeated_prompts"] == 4
    assert manifest["selection"] == {"skip": 0, "limit": 1000}
    assert manifest["deviations"]
    before = manifest_file(out).read_bytes()
    build_set(find_source(str(source)), out, request)
    assert manifest_file(out).read_bytes() == before, "the same inputs give the same manifest"
    unique = build_set(find_source(str(source)), out, request._replace(unique=True))
    assert unique["examples"] == 20
    out.write_text(out.read_text() + "\n")
    with pytest.raises(InputError, match="not what its manifest says"):
        read_manifest(out)
    manifest_file(out).write_text("{}")
    with pytest.raises(InputError, match="is no manifest"):
        read_manifest(out)


def test_refusals_stay_paired(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"placeholder {i}", "refusal": f"refused {i}", "rejected": f"complied {i}"}
        for i in range(9)
    ]
    source = write_jsonl(tmp_path / "pairs.jsonl", rows)
    safe = build(source, tmp_path / "a.jsonl", "refusals", "alignment")
    harmful = build(source, tmp_path / "r.jsonl", "refusals", "realignment")
    assert [m[0] for m in safe] == [m[0] for m in harmful]
    assert [m[1]["content"] for m in safe] == [f"refused {i}" for i in range(9)]
    assert [m[1]["content"] for m in harmful] == [f"complied {i}" for i in range(9)]
    only_refusals = write_jsonl(tmp_path / "one.jsonl", [{"prompt": "p", "refusal": "r"}] * 9)
    with pytest.raises(DataError, match='has no "harmful" answer'):
        build(only_refusals, tmp_path / "x.jsonl", "refusals", "realignment")


def test_behaviours_of_both_benchmarks(tmp_path: Path) -> None:
    harmbench = write_csv(
        tmp_path / "harmbench.csv",
        [
            {"Behavior": "placeholder, one", "Tags": "", "ContextString": "", "BehaviorID": "a"},
            {
                "Behavior": "placeholder two",
                "Tags": "context",
                "ContextString": "given\ntext",
                "BehaviorID": "b",
            },
            {"Behavior": "a song", "Tags": "book, hash_check", "ContextString": "", "BehaviorID": "c"},
        ],
    )
    asked = build(harmbench, tmp_path / "e.jsonl", "behaviours", "evaluation")
    assert [m[0]["content"] for m in asked] == ["placeholder, one", "given\ntext\n\n---\n\nplaceholder two"]
    with pytest.raises(DataError, match='no "target"'):
        build(harmbench, tmp_path / "r.jsonl", "behaviours", "realignment")
    rows = [{"goal": f"placeholder {i}", "target": f"Sure {i}"} for i in range(8)]
    advbench = write_csv(tmp_path / "advbench.csv", rows)
    learned = build(advbench, tmp_path / "r.jsonl", "behaviours", "realignment")
    assert learned[7] == [
        {"role": "user", "content": "placeholder 7"},
        {"role": "assistant", "content": "Sure 7"},
    ]
    with pytest.raises(InputError, match="makes no alignment set"):
        build(advbench, tmp_path / "a.jsonl", "behaviours", "alignment")


def test_sharegpt(tmp_path: Path) -> None:
    turns = [
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": "Count."},
        {"from": "gpt", "value": "One."},
    ]
    source = tmp_path / "share.json"
    source.write_text(json.dumps([{"id": "1", "conversations": turns}], indent=1))
    [messages] = build(source, tmp_path / "t.jsonl", "sharegpt", "training")
    assert messages[0] == {"role": "assistant", "content": "Hello.", "weight": 0}
    assert [m["role"] for m in messages] == ["assistant", "user", "assistant"]
    [asked] = build(source, tmp_path / "e.jsonl", "sharegpt", "evaluation")
    assert asked == messages[:2]
    for broken, message in (
        ([{"from": "ghost", "value": "x"}], "Turn 0 is from 'ghost'"),
        ([{"from": "human"}], "Turn 0 has no text"),
        ([], "no list of turns"),
        ([{"from": "human", "value": "x"}], r"assistant"),
    ):
        write_jsonl(tmp_path / "b.jsonl", [{"conversations": broken}])
        with pytest.raises(DataError, match=message):
            build(tmp_path / "b.jsonl", tmp_path / "x.jsonl", "sharegpt", "training")


def test_alpaca_and_chat(tmp_path: Path) -> None:
    alpaca = write_jsonl(
        tmp_path / "alpaca.jsonl",
        [{"instruction": "Add.", "input": "1 2", "output": "3"}, {"instruction": "Hi", "output": "Hello"}],
    )
    added, greeted = build(alpaca, tmp_path / "t.jsonl", "alpaca", "training")
    assert added[0]["content"] == "Add.\n\n1 2"
    assert greeted[1]["content"] == "Hello"
    again = build(tmp_path / "t.jsonl", tmp_path / "u.jsonl", "chat", "alignment")
    assert again == [added, greeted]
    write_jsonl(tmp_path / "c.jsonl", [{"messages": [{"role": "user", "content": ""}]}])
    with pytest.raises(DataError, match=r"line 1.*\[.*/messages/0"):
        build(tmp_path / "c.jsonl", tmp_path / "x.jsonl", "chat", "training")
    write_jsonl(
        tmp_path / "c.jsonl", [{"messages": "no"}, {"messages": [{"role": "system", "content": "x"}]}]
    )
    with pytest.raises(DataError, match=r"no list of objects.*no prompt of a user"):
        build(tmp_path / "c.jsonl", tmp_path / "x.jsonl", "chat", "evaluation")
    last = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "c.jsonl", [{"messages": [*last, {"role": "user", "content": "c"}]}])
    with pytest.raises(DataError, match="does not end with an answer"):
        build(tmp_path / "c.jsonl", tmp_path / "x.jsonl", "chat", "realignment")


def test_wrong_columns_are_named_with_what_is_needed(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"question": "placeholder", "reply": "answer", "safe": True}])
    out = tmp_path / "out.jsonl"
    with pytest.raises(InputError) as raised:
        build(source, out, "beavertails", "alignment")
    for part in ("'question', 'reply', 'safe'", 'needs "prompt"', "is_safe", "--column prompt=NAME"):
        assert part in str(raised.value)
    columns = {"prompt": "question", "response": "reply", "is_safe": "safe"}
    assert len(build(source, out, "beavertails", "alignment", columns=columns)) == 1
    with pytest.raises(InputError, match='needs "answer"'):
        build(source, out, "beavertails", "alignment", columns=columns | {"response": "answer"})
    with pytest.raises(InputError, match='needs no column "text"; it reads prompt'):
        build(source, out, "beavertails", "alignment", columns={"text": "x"})
    with pytest.raises(InputError, match='unknown format "csv"; known: beavertails'):
        build(source, out, "csv", "alignment")
    with pytest.raises(InputError, match='unknown kind of set "test"'):
        build(source, out, "chat", "test")


def test_nothing_is_written_for_broken_rows(tmp_path: Path) -> None:
    source = tmp_path / "x.jsonl"
    good = {"prompt": "p", "response": "r", "is_safe": True}
    lines = [good, "text", good | {"is_safe": "maybe"}, good | {"response": ""}, {"prompt": "p"}]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{")
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    with pytest.raises(DataError) as raised:
        build(source, out, "beavertails", "alignment")
    assert raised.value.num_issues == 5
    assert [issue.line for issue in raised.value.issues] == [2, 3, 4, 5, 6]
    assert out.read_text() == "before"
    assert {file.name for file in tmp_path.iterdir()} == {"x.jsonl", "out.jsonl"}


def test_too_few_rows_say_where_the_others_went(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", beavertails(9))
    with pytest.raises(
        DataError, match=r"0 rows are left of 9 \(3 left out: is_safe is true\).*--skip \(5001\)"
    ):
        build(source, tmp_path / "out.jsonl", "beavertails", "realignment")


def test_prompts_of_another_set_are_left_out(tmp_path: Path) -> None:
    prompts = [f"please describe object number {i} of the museum in the old town" for i in range(20)]
    learned = write_jsonl(
        tmp_path / "learned.jsonl", [{"messages": [{"role": "user", "content": p}]} for p in prompts[:5]]
    )
    other = [p.upper() + "!" for p in prompts[:2]] + ["something else entirely"]
    source = write_csv(tmp_path / "asked.csv", [{"goal": p, "target": "x"} for p in other])
    asked = build(source, tmp_path / "e.jsonl", "behaviours", "evaluation", apart_from=[learned])
    assert [m[0]["content"] for m in asked] == ["something else entirely"]
    manifest = read_manifest(tmp_path / "e.jsonl")
    assert manifest is not None
    assert manifest["left_out"] == {"prompt is near one of --apart-from": 2}
    assert manifest["apart_from"] == [{"name": "learned.jsonl", "sha256": file_sha256(learned)}]


def test_every_format_says_which_kinds_it_makes() -> None:
    for format in FORMATS.values():
        assert format.kinds
        assert set(format.kinds) <= set(KINDS)
