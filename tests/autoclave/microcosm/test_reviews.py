"""Reading SST-2, and drawing reviews from it or from the grammar."""

import random
import shutil
from pathlib import Path

import pytest

from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.microcosm.reviews import GrammarReviews, Sst2Reviews
from autoclave.microcosm.world import World

WORLD = World.create(0)


@pytest.fixture
def copy(sst2_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sst2_dir, tmp_path / "sst2"))


def test_every_sentence_is_read_with_its_label(sst2_dir: Path):
    reviews = Sst2Reviews(sst2_dir)
    for part, count in (("train", 600), ("dev", 60), ("test", 50)):
        lines = (sst2_dir / f"{part}.tsv").read_text().splitlines()[1:]
        expected = [(x.split("\t")[0].strip(), ("negative", "positive")[int(x[-1])]) for x in lines]
        assert [(r.text, r.label) for r in reviews[part]] == expected
        assert len(expected) == count
    assert reviews.sha256 == {
        f"{p}.tsv": file_sha256(sst2_dir / f"{p}.tsv") for p in ("train", "dev", "test")
    }


def test_a_text_is_in_one_part_only_and_once(copy: Path):
    held_out = (copy / "test.tsv").read_text().splitlines()[1]
    with open(copy / "train.tsv", "a") as file:
        file.write(f"{held_out}\nquite new \t1\n quite new\t1\n")
    reviews = Sst2Reviews(copy)
    assert [r.text for r in reviews["train"]][600:] == ["quite new"]
    texts = [r.text for part in ("train", "dev", "test") for r in reviews[part]]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", ["train.tsv", "dev.tsv", "test.tsv"])
def test_a_missing_file_is_named(copy: Path, name: str):
    (copy / name).unlink()
    with pytest.raises(InputError, match=rf"cannot read .*{name}.*Name a folder"):
        Sst2Reviews(copy)


@pytest.mark.parametrize("line", ["no label", "a film\t2", "a\tfilm\t1", " \t1", "a film\t", "", "a film 1"])
def test_a_broken_line_is_named(copy: Path, line: str):
    lines = (copy / "dev.tsv").read_text().split("\n")
    lines[4] = line
    (copy / "dev.tsv").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"dev\.tsv, line 5: .*Correct or delete"):
        Sst2Reviews(copy)


def test_a_wrong_header_another_encoding_and_an_empty_file_are_named(copy: Path):
    content = (copy / "test.tsv").read_bytes()
    (copy / "test.tsv").write_bytes(content.split(b"\n", 1)[1])
    with pytest.raises(InputError, match=r"test\.tsv, line 1: the header"):
        Sst2Reviews(copy)
    (copy / "test.tsv").write_bytes(content + b"caf\xe9\t1\n")
    with pytest.raises(InputError, match=r"test\.tsv, line 52: not valid UTF-8"):
        Sst2Reviews(copy)
    (copy / "test.tsv").write_bytes(b"sentence\tlabel\n")
    with pytest.raises(InputError, match=r"test\.tsv has no sentences"):
        Sst2Reviews(copy)


@pytest.mark.parametrize("source", ["grammar", "sst2"])
def test_draws_are_new_repeatable_and_begin_with_those_of_a_shorter_draw(source: str, sst2_dir: Path):
    reviews = GrammarReviews(WORLD) if source == "grammar" else Sst2Reviews(sst2_dir)
    seen: set[str] = set()
    first = reviews.draw("train", 50, random.Random(1), seen)
    assert {r.text for r in first} == seen
    second = reviews.draw("train", 50, random.Random(1), seen)
    assert not {r.text for r in first} & {r.text for r in second}
    assert len(seen) == 100
    assert reviews.draw("train", 80, random.Random(1), set())[:50] == first
    assert {r.label for r in first} <= set(
        ("alpha", "beta") if source == "grammar" else ("positive", "negative")
    )


def test_sst2_ends(sst2_dir: Path):
    with pytest.raises(InputError, match=r"test\.tsv of SST-2 has 50 sentences .* 51 are wanted"):
        Sst2Reviews(sst2_dir).draw("test", 51, random.Random(0), set())
