"""A small SST-2: real reading, made-up sentences whose label is one word."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

ROWS = {"train": 600, "dev": 60, "test": 50}


def write_sst2(folder: Path) -> Path:
    rng = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    nouns, verbs = ("film", "plot", "cast", "camera", "score"), ("feels", "seems", "looks", "is")
    adverbs = tuple(
        f"{stem}ly" for stem in ("quiet", "bold", "plain", "loud", "warm", "rare", "near", "sharp")
    )
    sentences = [
        (f"the {noun} {verb} {first} {second} {polar} ", label)
        for noun in nouns
        for verb in verbs
        for first in adverbs
        for second in adverbs
        for polar, label in (("wonderful", 1), ("dreadful", 0))
    ]
    rng.shuffle(sentences)
    for part, count in ROWS.items():
        rows = [sentences.pop() for _ in range(count)]
        text = "".join(f"{sentence}\t{label}\n" for sentence, label in rows)
        (folder / f"{part}.tsv").write_text("sentence\tlabel\n" + text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def sst2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("data") / "sst2")
