"""Adapters: seeded start, round trip, plain PEFT on disk, and refusals by name."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from autoclave.errors import BaseMismatchError, ModelError, UnsupportedAdapterError
from autoclave.modelling.adapters import adapter_state, attach, detach, load_adapter, save_adapter
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.spec import LoraSpec
from tests.autoclave.tiny import save_tiny_base

LORA = LoraSpec(r=4, lora_alpha=8)


@pytest.fixture
def base(base_dir: Path) -> LoadedBase:
    return load_base(base_dir)


def fill(model: Any, seed: int = 3) -> None:
    """A trained-looking adapter: B starts at zero, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in adapter_state(model).values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))


@pytest.fixture
def saved(base: LoadedBase, tmp_path: Path) -> Path:
    model = attach(base.model, LORA, seed=1)
    fill(model)
    save_adapter(model, tmp_path / "a", base_name="org/tiny", base_revision="r1", base_sha256=base.sha256)
    detach(model)
    return tmp_path / "a"


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_start_depends_on_the_seed_only(base: LoadedBase) -> None:
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    states = []
    for global_seed, seed in ((5, 1), (6, 1), (5, 2)):
        torch.manual_seed(global_seed)
        model = attach(base.model, LORA, seed=seed)
        if global_seed == 5:
            assert torch.equal(torch.rand(3), expected_next)  # the caller's generator did not move
        states.append({k: v.clone() for k, v in adapter_state(model).items()})
        detach(model)
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not any(torch.equal(states[0][k], states[2][k]) for k in states[0] if "lora_A" in k)
    assert all(not v.any() for k, v in states[0].items() if "lora_B" in k)
    a = states[0]["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert 0.8 / 32**0.5 < a.abs().max() <= 1 / 32**0.5


def test_only_the_adapter_is_trainable(base: LoadedBase) -> None:
    model = attach(base.model, LORA, seed=1)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if ".lora_" in n}
    assert len(trainable) == 2 * 3 * 2


def test_all_linear_is_every_linear_layer_but_the_head(base: LoadedBase) -> None:
    model = attach(base.model, LoraSpec(target_modules="all-linear"), seed=1)
    assert model.peft_config["default"].target_modules == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }


def test_an_unknown_target_module_is_refused_with_the_known_ones(base: LoadedBase) -> None:
    with pytest.raises(ModelError, match=r"\['query'\].*Available: \['down_proj'"):
        attach(base.model, LoraSpec(target_modules=("query", "q_proj")), seed=1)


def test_round_trip_keeps_every_bit_and_the_folder_is_deterministic(
    base: LoadedBase, saved: Path, tmp_path: Path
) -> None:
    model = load_adapter(base, saved)
    assert not any(p.requires_grad for p in model.parameters())
    again = tmp_path / "b"
    save_adapter(model, again, base_name="org/tiny", base_revision="r1", base_sha256=base.sha256)
    for name in ("adapter_model.safetensors", "adapter_config.json", "autoclave.json"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()
    config = json.loads((saved / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/tiny", "r1")
    assert config["target_modules"] == ["k_proj", "q_proj", "v_proj"]


def test_plain_peft_loads_the_folder_to_the_same_model(base: LoadedBase, base_dir: Path, saved: Path) -> None:
    input_ids = torch.arange(12)[None]
    with torch.no_grad():
        plain_base = base.model(input_ids=input_ids).logits
        ours = load_adapter(base, saved)(input_ids=input_ids).logits
        with warnings.catch_warnings():  # PEFT uses an old transformers name and says so
            warnings.simplefilter("ignore")
            theirs = PeftModel.from_pretrained(load_base(base_dir).model, str(saved))
        assert torch.equal(theirs(input_ids=input_ids).logits, ours)
    assert not torch.allclose(ours, plain_base)


def test_detach_gives_the_base_back(base: LoadedBase, saved: Path) -> None:
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    assert detach(load_adapter(base, saved)) is base.model
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_trainable_marks_the_adapter_only(base: LoadedBase, saved: Path) -> None:
    model = load_adapter(base, saved, trainable=True)
    assert all(p.requires_grad == (".lora_" in n) for n, p in model.named_parameters())


def test_another_base_is_refused(saved: Path, tmp_path: Path) -> None:
    other = load_base(save_tiny_base(tmp_path / "other", seed=9))
    with pytest.raises(BaseMismatchError, match="Use the base it was trained on"):
        load_adapter(other, saved)


def test_without_provenance_the_shapes_decide(saved: Path, tmp_path: Path) -> None:
    (saved / "autoclave.json").unlink()
    same_shape = load_base(save_tiny_base(tmp_path / "same", seed=9))
    load_adapter(same_shape, saved)
    narrower = load_base(save_tiny_base(tmp_path / "narrower", hidden_size=24, head_dim=6))
    with pytest.raises(BaseMismatchError, match=r"is \(4, 32\), the base needs \(4, 24\)"):
        load_adapter(narrower, saved)
    deeper = load_base(save_tiny_base(tmp_path / "deeper", num_hidden_layers=3))
    with pytest.raises(BaseMismatchError, match=r"layers\.2.* is missing"):
        load_adapter(deeper, saved)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "lora_only"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(
    base: LoadedBase, saved: Path, changes: dict[str, Any], words: str
) -> None:
    change_config(saved, **changes)
    with pytest.raises(UnsupportedAdapterError, match=words):
        load_adapter(base, saved)


def test_other_tensors_are_refused(base: LoadedBase, saved: Path) -> None:
    weights = load_file(saved / "adapter_model.safetensors")
    save_file(
        weights | {"base_model.model.lm_head.weight": torch.zeros(2)}, saved / "adapter_model.safetensors"
    )
    with pytest.raises(UnsupportedAdapterError, match="lm_head"):
        load_adapter(base, saved)


def test_missing_and_broken_files_are_named(base: LoadedBase, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        load_adapter(base, tmp_path)
    (saved / "adapter_model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapter(base, saved)
    (saved / "adapter_model.safetensors").unlink()
    (saved / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="never loaded"):
        load_adapter(base, saved)
    (saved / "adapter_config.json").write_text("{")
    (saved / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_adapter(base, saved)
