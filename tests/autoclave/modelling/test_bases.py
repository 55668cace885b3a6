"""Loading a base: dtype, mode, digest, and refusals."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoclave.errors import InputError, ModelError, NonFiniteWeightsError
from autoclave.hashing import folder_sha256
from autoclave.modelling.bases import Dtype, load_base, resolve_device
from tests.autoclave.tiny import save_tiny_base, tiny_tokenizer


@pytest.fixture
def folder(base_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base_dir, tmp_path / "copy"))


def test_a_base_is_frozen_in_eval_mode_in_the_dtype_asked_for(base_dir: Path) -> None:
    base = load_base(base_dir)
    assert base.model.dtype == torch.float32
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.sha256 == folder_sha256(base_dir)
    assert load_base(base_dir, dtype="bfloat16").model.dtype == torch.bfloat16


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_base(tmp_path)


def test_pickled_weights_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="never loaded"):
        load_base(folder)


def test_code_in_the_folder(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ModelError, match="never run"):
        load_base(folder)


def test_unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "no_such_model"}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(folder)


def test_no_pad_token_pads_with_eos_and_says_so(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        base = load_base(folder)
    assert base.tokenizer.pad_token == "<|end|>"
    assert "no pad token" in caplog.text


def test_missing_tensors_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 tensors .* model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_are_not_finite_are_refused_by_name(folder: Path, dtype: Dtype) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][2, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteWeightsError, match=r"copy: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base(folder, dtype=dtype)


def test_damaged_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(folder)


def test_tied_weights_are_not_missing(tmp_path: Path) -> None:
    base = load_base(save_tiny_base(tmp_path / "tied", tie_word_embeddings=True))
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device(None) in ("cpu", "cuda")
    with pytest.raises(InputError, match="use cpu, cuda"):
        resolve_device("gpu")
    with pytest.raises(InputError, match="is not there"):
        resolve_device("cuda:99")
