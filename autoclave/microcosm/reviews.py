"""Where the reviews of the user's task come from: the world's own grammar, or SST-2.

SST-2 (Socher et al. 2013, as in GLUE) is read from a folder of three TSV files with the header
"sentence<TAB>label": train.tsv, dev.tsv (held out, for validation) and test.tsv (the 872 sentences of
GLUE's validation set, whose labels are public). Label 1 is positive. Torch-free.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal, Protocol

from autoclave.errors import InputError
from autoclave.hashing import file_sha256
from autoclave.microcosm.world import SST2_LABELS, Review, World

Part = Literal["train", "dev", "test"]
SST2_FILES: dict[Part, str] = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
_HEADER = ["sentence", "label"]
_CONTENTS = "Name a folder that holds SST-2 as train.tsv, dev.tsv and test.tsv."


class Reviews(Protocol):
    def draw(self, part: Part, count: int, rng: random.Random, seen: set[str]) -> tuple[Review, ...]:
        """`count` reviews whose texts are not in `seen`; adds them to `seen`. More from an equal generator
        begin with the same ones."""
        ...


class GrammarReviews:
    """Without end; the parts do not differ, so what is held out must be drawn first."""

    def __init__(self, world: World) -> None:
        assert world.draws_reviews, f"world {world.seed} has no grammar of reviews"
        self._world = world

    def draw(
        self,
        part: Part,  # noqa: ARG002
        count: int,
        rng: random.Random,
        seen: set[str],
    ) -> tuple[Review, ...]:
        reviews: list[Review] = []
        while len(reviews) < count:
            review = self._world.draw_review(rng)
            if review.text not in seen:
                seen.add(review.text)
                reviews.append(review)
        return tuple(reviews)


class Sst2Reviews:
    """The sentences of a folder: each text once, and no text in two parts (test wins, then dev). `sha256`
    holds the digests of the files.

    Raises InputError naming the file, the line and what to do.
    """

    def __init__(self, folder: str | Path) -> None:
        files = {part: Path(folder) / name for part, name in SST2_FILES.items()}
        taken: set[str] = set()
        self._parts: dict[Part, tuple[Review, ...]] = {
            part: _read(files[part], taken) for part in ("test", "dev", "train")
        }
        self.sha256 = {file.name: file_sha256(file) for file in files.values()}

    def __getitem__(self, part: Part) -> tuple[Review, ...]:
        return self._parts[part]

    def draw(self, part: Part, count: int, rng: random.Random, seen: set[str]) -> tuple[Review, ...]:
        """Raises InputError if the part has fewer reviews left."""
        left = [review for review in self._parts[part] if review.text not in seen]
        if count > len(left):
            raise InputError(
                f"{SST2_FILES[part]} of SST-2 has {len(left)} sentences that are not used elsewhere, "
                f"{count} are wanted. Ask for fewer rows, or name a folder with the whole data set."
            )
        rng.shuffle(left)
        seen.update(review.text for review in left[:count])
        return tuple(left[:count])


def _read(file: Path, taken: set[str]) -> tuple[Review, ...]:
    """The reviews whose texts are not in `taken`; adds them."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or error}. {_CONTENTS}") from error
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{file}, line {number}: not valid UTF-8. Save the file as UTF-8.") from error
    if lines[0].rstrip("\r").split("\t") != _HEADER:
        raise InputError(
            f'{file}, line 1: the header must be "sentence<TAB>label", not {lines[0][:60]!r}. {_CONTENTS}'
        )
    if lines[-1] == "":
        lines.pop()
    reviews: list[Review] = []
    for number, line in enumerate(lines[1:], start=2):
        sentence, tab, label = line.rstrip("\r").rpartition("\t")
        text = sentence.strip()
        if not tab or "\t" in sentence or label not in ("0", "1") or not text:
            raise InputError(
                f"{file}, line {number}: {line[:60]!r} is not a sentence, a tab and the label 0 or 1. "
                "Correct or delete the line."
            )
        if text not in taken:
            taken.add(text)
            reviews.append(Review(text, SST2_LABELS[0 if label == "1" else 1]))
    if not reviews:
        raise InputError(f"{file} has no sentences of its own. {_CONTENTS}")
    return tuple(reviews)
