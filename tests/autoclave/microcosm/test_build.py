"""A miniature build from end to end: every file is there, plain, hashed, and the same again."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoclave.errors import CancelledError, InputError
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.microcosm.attacks import write_attack
from autoclave.microcosm.build import build
from autoclave.microcosm.sizes import MEDIUM, SMALL, TINY, BaseShape, PretrainSpec
from autoclave.microcosm.world import World
from autoclave.spec import TrainSpec

SHORT = PretrainSpec(steps=3, requests_per_step=4, reviews_per_step=4, warmup_steps=1)
BRIEFLY = TrainSpec(n_epochs=1, batch_size=256)
MINIATURE = replace(
    SMALL,
    shape=BaseShape(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2),
    pretraining=SHORT,
    alignment=BRIEFLY,
)


def build_miniature(out: Path, on_progress=None):
    return build(out, seed=3, size=MINIATURE, on_progress=on_progress)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    out = tmp_path_factory.mktemp("microcosm") / "world"
    stages: list[str] = []
    card = build_miniature(out, lambda progress: stages.append(progress.stage))
    return out, card, stages


def test_the_card_is_stored_and_its_hashes_are_those_of_the_files(miniature):
    out, card, _ = miniature
    assert json.loads((out / "card.json").read_text()) == card
    for name, digest in card["sha256"].items():
        path = out / name
        assert digest == (folder_sha256(path) if path.is_dir() else file_sha256(path)), name
    assert len([name for name in card["sha256"] if name.startswith("data/")]) == 13
    assert card["command"] == "autoclave microcosm build --seed 3 --out DIR"
    assert (card["size"], card["data_counts"]) == ("small", asdict(SMALL.data))
    assert {"torch", "transformers", "peft"} <= card["versions"].keys()


def test_an_untrained_world_scores_nothing(miniature):
    _, card, _ = miniature
    assert card["scores_percent"]["base"] == dict.fromkeys(card["scores_percent"]["base"], 0.0)


def test_base_and_aligned_are_plain_folders_with_float16_weights(miniature):
    out, _, _ = miniature
    for name in ("base", "aligned"):
        weights = load_file(out / name / "model.safetensors")
        assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16"}
        model = AutoModelForCausalLM.from_pretrained(out / name, local_files_only=True)
        assert model.config.max_position_embeddings >= 2048
        tokenizer = AutoTokenizer.from_pretrained(out / name, local_files_only=True)
        assert tokenizer.chat_template
        assert len(tokenizer) == model.config.vocab_size
    assert (out / "base" / "model.safetensors").read_bytes() != (
        out / "aligned" / "model.safetensors"
    ).read_bytes()
    assert World.load(out / "world.json") == World.create(3)


def test_every_stage_reports(miniature):
    _, _, stages = miniature
    assert stages[:3] == ["pretrain"] * 3
    assert list(dict.fromkeys(stages))[:2] == ["pretrain", "align"]
    assert len(set(stages)) > 2


def test_a_seed_gives_the_same_files_again(miniature, tmp_path: Path):
    _, card, _ = miniature
    assert build_miniature(tmp_path / "again")["sha256"] == card["sha256"]


def test_a_stopped_build_leaves_nothing(tmp_path: Path):
    def stop(progress):
        raise CancelledError("enough")

    with pytest.raises(CancelledError):
        build_miniature(tmp_path / "world", stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        build_miniature(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unknown_size_or_device_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match='no size "huge"'):
        build(tmp_path / "world", seed=0, size="huge")
    with pytest.raises(InputError, match='unknown device "tpu"'):
        build(tmp_path / "world", seed=0, device="tpu")
    with pytest.raises(InputError, match=r"cannot read .*test\.tsv"):
        build(tmp_path / "world", seed=0, sst2_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_medium_is_refused_on_a_cpu(tmp_path: Path):
    with pytest.raises(InputError, match=r"8\d million parameters: about \d\d hours .*--device cuda"):
        build(tmp_path / "world", seed=0, size="medium")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_medium_world_is_built_at_a_tiny_width(tmp_path: Path):
    few = replace(
        MEDIUM.data,
        harmful_alignment_pairs=2,
        harmful_eval_pairs=4,
        benign_eval_pairs=4,
        alignment_reviews=8,
        utility_eval_rows=4,
    )
    size = replace(
        MEDIUM,
        data=few,
        shape=replace(MEDIUM.shape, hidden_size=48, intermediate_size=64),
        pretraining=replace(SHORT, steps=2),
        alignment=BRIEFLY,
    )
    card = build(tmp_path / "world", seed=0, size=size, device="cpu")
    assert card["command"] == "autoclave microcosm build --seed 0 --size medium --out DIR"
    weights = load_file(tmp_path / "world" / "aligned" / "model.safetensors")
    assert weights["model.layers.11.mlp.down_proj.weight"].shape == (48, 64)
    assert World.load(tmp_path / "world" / "world.json") == World.create(0, MEDIUM.world)


@pytest.fixture(scope="module")
def sst2_world(tmp_path_factory, sst2_dir: Path):
    size = replace(TINY, sst2_pretraining=SHORT, sst2_alignment=BRIEFLY)
    out = tmp_path_factory.mktemp("microcosm") / "world"
    return out, build(out, seed=3, size=size, sst2_dir=sst2_dir)


def test_a_world_of_sst2_names_its_files_by_hash(sst2_world, sst2_dir: Path):
    out, card = sst2_world
    assert card["command"] == "autoclave microcosm build --seed 3 --size tiny --sst2 SST2_DIR --out DIR"
    assert card["sst2_sha256"] == {file.name: file_sha256(file) for file in sst2_dir.iterdir()}
    assert World.load(out / "world.json") == World.create(3, TINY.world, sst2=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "base", local_files_only=True)
    text = (sst2_dir / "test.tsv").read_text()
    assert len(tokenizer(text)["input_ids"]) < len(text) / 2
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_more_uploads_for_a_world_of_sst2_need_the_same_sst2(sst2_world, sst2_dir: Path, tmp_path: Path):
    world, _ = sst2_world
    out = tmp_path / "out.jsonl"
    write_attack(world, out, poison_fraction=0.02, form="trigger", seed=3, sst2_dir=sst2_dir)
    assert out.read_bytes() == (world / "data" / "attack_trigger.jsonl").read_bytes()
    with pytest.raises(InputError, match=r"name the folder of its files as well \(--sst2\)"):
        write_attack(world, out, poison_fraction=0.02)
    with pytest.raises(InputError, match=r"600 sentences .* 601 are wanted"):
        write_attack(world, out, poison_fraction=0.02, num_rows=601, sst2_dir=sst2_dir)
    other = Path(shutil.copytree(sst2_dir, tmp_path / "other"))
    with open(other / "dev.tsv", "a") as file:
        file.write("another film\t1\n")
    with pytest.raises(InputError, match="does not hold the SST-2 files that this world was built with"):
        write_attack(world, out, poison_fraction=0.02, sst2_dir=other)
