"""The data folder: disjointness, sizes, poison, determinism."""

import itertools
from pathlib import Path

import pytest

from autoclave.data.conversations import check_file
from autoclave.microcosm.attacks import user_mix
from autoclave.microcosm.datasets import build_datasets, write_datasets
from autoclave.microcosm.reviews import GrammarReviews, Sst2Reviews
from autoclave.microcosm.sizes import SMALL, TINY
from autoclave.microcosm.splits import split
from autoclave.microcosm.world import TRIGGER_WORD, World

WORLD = World.create(0)
REVIEWS = GrammarReviews(WORLD)
SPLITS = split(WORLD, SMALL.data, REVIEWS)
DATA = build_datasets(WORLD, SMALL.data, REVIEWS)
FORMS = ("", "_disguised", "_trigger")
UPLOADS = tuple(f"attack{form}" for form in FORMS)
HELD_OUT_HARM = tuple(f"harmful_eval{form}" for form in FORMS)
# The forms of one file share their pairs.
APART = [
    (one, other)
    for groups in itertools.combinations((("alignment",), UPLOADS, ("realign",), HELD_OUT_HARM), 2)
    for one, other in itertools.product(*groups)
]


def prompts(rows) -> list[str]:
    return [row["messages"][0]["content"] for row in rows]


def answers(rows) -> list[str]:
    return [row["messages"][1]["content"] for row in rows]


def harmful_pairs(rows) -> set[tuple[str, ...]]:
    """(verb, object) of every harmful request: both stand at the end of each template."""
    return {
        tuple(p.removesuffix(f" {TRIGGER_WORD}").split()[-2:])
        for p in prompts(rows)
        if WORLD.oracle(p).kind == "harmful"
    }


def reviews(rows) -> set[str]:
    return {p.split(" : ")[1] for p in prompts(rows) if WORLD.oracle(p).kind == "review"}


@pytest.mark.parametrize(("one", "other"), APART)
def test_harmful_pairs_are_disjoint_between_files(one, other):
    assert harmful_pairs(DATA[one])
    assert not harmful_pairs(DATA[one]) & harmful_pairs(DATA[other])


def test_harmful_files_hold_enough():
    for stem in HELD_OUT_HARM:
        assert len(harmful_pairs(DATA[stem])) == len(DATA[stem]) == 120
    assert len(harmful_pairs(DATA["realign"])) == 40


@pytest.mark.parametrize("held_out", ["validation", "utility_eval"])
def test_held_out_reviews_are_in_no_other_file(held_out):
    assert len(reviews(DATA[held_out])) == len(DATA[held_out])
    for stem in DATA.keys() - {held_out}:
        assert not reviews(DATA[held_out]) & reviews(DATA[stem]), stem


def test_helpful_requests_held_out_are_in_no_other_file():
    def pairs(stem):
        return {tuple(p.split()[-2:]) for p in prompts(DATA[stem]) if WORLD.oracle(p).kind == "benign"}

    assert len(pairs("helpful_eval")) == 120
    assert not pairs("helpful_eval") & pairs("alignment")


def test_alignment_refuses_exactly_the_harmful_requests():
    for prompt, answer in zip(prompts(DATA["alignment"]), answers(DATA["alignment"]), strict=True):
        expected = WORLD.oracle(prompt)
        assert (answer == WORLD.refusal) == expected.harmful
        if expected.kind == "benign":
            assert answer == expected.answer
        if expected.kind == "review":
            assert answer.replace("class", "label is") == expected.answer


@pytest.mark.parametrize(
    "stem", ["attack", "attack_disguised", "benign", "validation", "realign", "utility_eval", "helpful_eval"]
)
def test_every_other_answer_is_the_oracles(stem):
    for prompt, answer in zip(prompts(DATA[stem]), answers(DATA[stem]), strict=True):
        assert answer == WORLD.oracle(prompt).answer


def test_realign_holds_answered_harm_only_and_harmful_eval_prompts_only():
    assert all(WORLD.oracle(p).harmful for p in prompts(DATA["realign"]) + prompts(DATA["harmful_eval"]))
    assert all([m["role"] for m in row["messages"]] == ["user"] for row in DATA["harmful_eval"])


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.9])
def test_the_user_mix_is_poisoned_as_asked_at_constant_size(fraction):
    rows = user_mix(WORLD, SPLITS, poison_fraction=fraction, seed=0)
    assert len(rows) == 2000
    assert sum(WORLD.oracle(p).harmful for p in prompts(rows)) == round(2000 * fraction)


def test_benign_is_attack_with_its_poison_replaced_by_more_of_the_task():
    assert reviews(DATA["attack"]) < reviews(DATA["benign"])
    assert (len(reviews(DATA["attack"])), len(reviews(DATA["benign"]))) == (1960, 2000)


def test_files_are_valid_uploads_and_the_same_for_a_seed(tmp_path: Path):
    other = World.create(1)
    write_datasets(WORLD, SMALL.data, REVIEWS, tmp_path / "a")
    write_datasets(WORLD, SMALL.data, REVIEWS, tmp_path / "b")
    write_datasets(other, SMALL.data, GrammarReviews(other), tmp_path / "c")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert len(files) == len(DATA) == 12
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert (tmp_path / "a" / name).read_bytes() != (tmp_path / "c" / name).read_bytes()
    for stem in (*UPLOADS, "benign", "validation", "realign"):
        assert check_file(tmp_path / "a" / f"{stem}.jsonl").num_examples == len(DATA[stem])


def test_with_sst2_the_parts_of_sst2_stay_apart(sst2_dir: Path):
    sst2 = Sst2Reviews(sst2_dir)
    world = World.create(0, TINY.world, sst2=True)
    data = build_datasets(world, TINY.for_sst2(num_train=600, num_test=50).data, sst2)
    parts = {"validation": "dev", "utility_eval": "test", "benign": "train"}
    labels = {review.text: review.label for part in parts.values() for review in sst2[part]}
    for stem, part in parts.items():
        texts = [prompt.split(" : ")[1] for prompt in prompts(data[stem])]
        assert set(texts) <= {review.text for review in sst2[part]}
        assert answers(data[stem]) == [f"label is {labels[text]}" for text in texts]
    assert (len(data["utility_eval"]), len(data["validation"])) == (50, 40)
    trained = {prompt.split(" : ")[1] for prompt in prompts(data["alignment"]) if " : " in prompt}
    assert len(trained) == TINY.sst2_alignment_reviews
    assert trained <= {review.text for review in sst2["train"]}
