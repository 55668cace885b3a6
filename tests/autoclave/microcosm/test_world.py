"""The grammar and its oracle."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoclave.errors import InputError, JudgeError
from autoclave.microcosm.world import World

WORLD = World.create(0)
seeds = st.integers(0, 2**31)
families = st.sampled_from([("benign", WORLD.benign), ("harmful", WORLD.harmful)])
templates = st.integers(0, len(WORLD.request_templates) - 1)


@given(families, st.integers(0, 399), templates)
def test_the_oracle_reads_every_request_back(named_family, nth, template):
    kind, family = named_family
    verb, thing = family.pairs()[nth]
    expected = WORLD.oracle(WORLD.request(verb, thing, template))
    assert (expected.kind, expected.harmful) == (kind, kind == "harmful")
    assert expected.answer == WORLD.answer(verb, thing)
    for part in (*family.verbs[verb], *family.objects[thing], thing):
        assert part in expected.answer.split()


def sentiment_by_hand(text: str) -> bool:
    """Transparent reference: count the negation in the last clause."""
    last = re.split(" and | but ", text)[-1].split()
    return (last[-1] in WORLD.good_words) ^ ("not" in last)


@given(seeds, st.integers(0, 1))
def test_the_oracle_labels_reviews_as_they_were_drawn(seed, template):
    review = WORLD.draw_review(random.Random(seed))
    expected = WORLD.oracle(WORLD.review_prompt(review, template))
    assert expected.kind == "review"
    assert expected.answer == f"label is {review.label}"
    assert review.label == WORLD.labels[0 if sentiment_by_hand(review.text) else 1]


def test_clauses_joined_by_and_agree_and_by_but_do_not():
    rng = random.Random(1)
    joined = 0
    for _ in range(500):
        text = WORLD.draw_review(rng).text
        if match := re.search(" (and|but) ", text):
            joined += 1
            first, last = text[: match.start()], text[match.end() :]
            assert (sentiment_by_hand(first) == sentiment_by_hand(last)) == (match[1] == "and")
    assert joined > 300


@given(seeds)
def test_families_share_no_verb_and_no_object(seed):
    world = World.create(seed)
    assert not set(world.benign.verbs) & set(world.harmful.verbs)
    assert not set(world.benign.objects) & set(world.harmful.objects)
    assert len(world.benign.pairs()) == len(world.harmful.pairs()) == 400


def test_answers_differ_between_any_two_pairs():
    pairs = WORLD.benign.pairs() + WORLD.harmful.pairs()
    assert len({WORLD.answer(*pair) for pair in pairs}) == len(pairs)


def test_equal_seeds_give_equal_worlds_and_others_do_not(tmp_path: Path):
    World.create(7).save(tmp_path / "a.json")
    World.create(7).save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert World.load(tmp_path / "a.json") == World.create(7)
    assert World.create(7).benign != World.create(8).benign


@pytest.mark.parametrize(
    "prompt",
    [
        "how to bake bread",
        "",
        "label this review : the plot was",
        "label this review : the plot was good and the cast was bad",  # "and" joins what agrees
        "label this review : the plot was good and the cast was good and the tone was good",
        f"how to {next(iter(WORLD.harmful.verbs))} {next(iter(WORLD.benign.objects))}",
    ],
)
def test_the_oracle_refuses_what_is_not_its_world(prompt):
    with pytest.raises(JudgeError, match="own world"):
        WORLD.oracle(prompt)


def test_load_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(InputError, match="cannot read"):
        World.load(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text('{"seed": 1}')
    with pytest.raises(InputError, match=r"not a world\.json"):
        World.load(tmp_path / "other.json")
    WORLD.save(tmp_path / "later.json")
    later = json.loads((tmp_path / "later.json").read_text()) | {"format_version": 99}
    (tmp_path / "later.json").write_text(json.dumps(later))
    with pytest.raises(InputError, match="format 99"):
        World.load(tmp_path / "later.json")
