"""The sizes: counts that fit, and `small` with the bits that it always had."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autoclave.errors import InputError
from autoclave.microcosm.datasets import write_datasets
from autoclave.microcosm.pretrain import new_model
from autoclave.microcosm.reviews import GrammarReviews
from autoclave.microcosm.sizes import MEDIUM, SIZES, SMALL, hours_on_cpu, named_size
from autoclave.microcosm.tokenizer import build_tokenizer
from autoclave.microcosm.world import World

# Of world 1 as the first version of this package wrote it.
SMALL_WORLD_1_SHA256 = {
    "alignment.jsonl": "6d1b12f66a1d18c0099d2a9c07e4f38de6f68dac1bf5659816298f043cb46422",
    "attack.jsonl": "a2b9443cfee3492a382197743769ab4e60460c1486b3a5cf06b67eb1eddf602b",
    "benign.jsonl": "aa2a859308e419d160376d7f0f361296eb6474ede37979c253fbbc0c7b006c66",
    "harmful_eval.jsonl": "230c47ef9e040f0e540a689e2c37a430d76ada5e0bbfd8b1524c2df8c573c854",
    "helpful_eval.jsonl": "1c7af06fcf08532a6b0487cd62f15f6c429f828c2afb27cfebb25eaf828077d4",
    "realign.jsonl": "9c8699fa37b58c13b308184609e0973fc77fcf8696047e8aa57d272d3bba8f76",
    "utility_eval.jsonl": "5193c8b94015d29750dbafc9f4904004cc9901d554ab69e3d5c1016cbfc62231",
    "validation.jsonl": "00285ee82b88aadedb0a315e1ced996b46daae4e2893764bebf646c803ea0f4b",
    "world.json": "d72eb669a61c835127590ad39ec244595ccb62d59c5c7629bc89ac97b4fa83bb",
}


def test_small_keeps_its_bits(tmp_path: Path):
    world = World.create(1)
    world.save(tmp_path / "world.json")
    write_datasets(world, SMALL.data, GrammarReviews(world), tmp_path)
    for name, digest in SMALL_WORLD_1_SHA256.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_counts_fit_into_the_world(size):
    world, data = size.world, size.data
    pairs = world.verbs_per_family * world.objects_per_family
    harmful = (
        data.harmful_alignment_pairs,
        data.harmful_attack_pairs,
        data.harmful_realign_pairs,
        data.harmful_eval_pairs,
    )
    assert sum(harmful) == pairs
    assert data.harmful_alignment_pairs <= data.benign_alignment_pairs <= pairs - data.benign_eval_pairs
    assert len(World.create(0, world).harmful.pairs()) == pairs
    assert size.shape.hidden_size % size.shape.num_heads == 0


def test_sst2_replaces_the_task_and_leaves_the_requests():
    with_sst2 = SMALL.for_sst2(num_train=5000, num_test=872)
    assert (with_sst2.data.pretraining_reviews, with_sst2.data.utility_eval_rows) == (5000, 872)
    assert with_sst2.pretraining == SMALL.sst2_pretraining
    assert with_sst2.alignment == SMALL.sst2_alignment
    kept = replace(
        with_sst2.data,
        pretraining_reviews=SMALL.data.pretraining_reviews,
        utility_eval_rows=SMALL.data.utility_eval_rows,
        alignment_reviews=SMALL.data.alignment_reviews,
    )
    assert (with_sst2.world, kept) == (SMALL.world, SMALL.data)


def test_another_name_is_refused():
    assert named_size("tiny").name == "tiny"
    with pytest.raises(InputError, match='no size "huge"; use tiny, small, medium'):
        named_size("huge")


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_the_parameters_are_those_of_the_model(size):
    tokenizer = build_tokenizer(World.create(0, size.world), [], size.sst2_vocabulary)
    with torch.device("meta"):
        model = new_model(tokenizer, size.shape, 0)
    assert size.shape.num_parameters(len(tokenizer)) == sum(p.numel() for p in model.parameters())


def test_medium_is_medium():
    assert 50e6 < MEDIUM.shape.num_parameters(1000) < 150e6
    assert hours_on_cpu(MEDIUM) > 20
    # The shipped world took 150 seconds, its alignment among them.
    assert 60 < hours_on_cpu(SMALL) * 3600 < 400
