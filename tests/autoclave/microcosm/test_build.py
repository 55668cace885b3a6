"""A miniature build from end to end: every file is there, plain, hashed, and the same again."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from autoclave.errors import CancelledError, InputError
from autoclave.hashing import file_sha256, folder_sha256
from autoclave.microcosm.build import ALIGNMENT_TRAINING, build
from autoclave.microcosm.pretrain import BaseShape, PretrainSpec
from autoclave.microcosm.world import World

TINY = BaseShape(hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2)
SHORT = PretrainSpec(steps=3, requests_per_step=4, reviews_per_step=4, warmup_steps=1)
ALIGNED_BRIEFLY = ALIGNMENT_TRAINING.model_copy(update={"n_epochs": 1, "batch_size": 256})


def build_miniature(out: Path, on_progress=None):
    return build(
        out, seed=3, on_progress=on_progress, shape=TINY, pretraining=SHORT, alignment=ALIGNED_BRIEFLY
    )


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
    assert len([name for name in card["sha256"] if name.startswith("data/")]) == 8
    assert card["command"] == "autoclave microcosm build --seed 3 --out DIR"
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
