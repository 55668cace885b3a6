"""Adapters: seeded start, round trip, exactly what plain PEFT computes, and refusals by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoclave.errors import BaseMismatchError, ModelError, NonFiniteWeightsError, UnsupportedAdapterError
from autoclave.modelling.adapters import adapter_state, attach, detach, load_adapter, save_adapter
from autoclave.modelling.bases import LoadedBase, load_base
from autoclave.spec import LoraSpec
from tests.autoclave.modelling.variants import (
    VARIANTS,
    change_config,
    fill,
    load_with_peft,
    logits,
    save_with_peft,
    scales,
)
from tests.autoclave.tiny import save_tiny_base

LORA = LoraSpec(r=4, lora_alpha=8)


@pytest.fixture
def base(base_dir: Path) -> LoadedBase:
    return load_base(base_dir)


@pytest.fixture
def saved(base: LoadedBase, tmp_path: Path) -> Path:
    model = attach(base.model, LORA, seed=1)
    fill(model)
    save_adapter(model, tmp_path / "a", base_name="org/tiny", base_revision="r1", base_sha256=base.sha256)
    detach(model)
    return tmp_path / "a"


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
    plain_base = logits(base.model)
    ours = logits(load_adapter(base, saved))
    assert torch.equal(logits(load_with_peft(base_dir, saved)), ours)
    assert not torch.allclose(ours, plain_base)


@pytest.fixture(params=VARIANTS)
def from_peft(request: pytest.FixtureRequest, base_dir: Path, tmp_path: Path) -> Path:
    """An adapter as plain PEFT makes it, with the configuration in the order in which it was written."""
    return save_with_peft(base_dir, tmp_path / "theirs", VARIANTS[request.param])


def test_what_peft_made_computes_the_same_here_and_after_saving_again(
    base: LoadedBase, base_dir: Path, from_peft: Path, tmp_path: Path
) -> None:
    theirs = load_with_peft(base_dir, from_peft)
    ours = load_adapter(base, from_peft)
    assert not torch.allclose(logits(ours), logits(load_base(base_dir).model))
    assert torch.equal(logits(ours), logits(theirs))
    assert scales(ours) == scales(theirs)

    save_adapter(ours, tmp_path / "again", base_name="org/tiny", base_revision=None, base_sha256=base.sha256)
    before = json.loads((from_peft / "adapter_config.json").read_text())
    after = json.loads((tmp_path / "again/adapter_config.json").read_text())
    for name in ("r", "lora_alpha", "use_rslora", "lora_dropout", "init_lora_weights", "layers_to_transform"):
        assert after[name] == before[name], name
    for name in ("rank_pattern", "alpha_pattern"):
        assert list(after[name].items()) == list(before[name].items())
    again = load_with_peft(base_dir, tmp_path / "again")
    assert torch.equal(logits(again), logits(ours))
    assert scales(again) == scales(ours)
    assert adapter_state(again).keys() == adapter_state(theirs).keys()


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


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.weight",
        f"{Q}.lora_B.bias",
        f"{Q}.lora_magnitude_vector",
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ],
)
def test_other_tensors_are_refused(base: LoadedBase, saved: Path, name: str) -> None:
    weights = load_file(saved / "adapter_model.safetensors")
    save_file(weights | {name: torch.zeros(2)}, saved / "adapter_model.safetensors")
    with pytest.raises(UnsupportedAdapterError, match=name):
        load_adapter(base, saved)


@pytest.mark.parametrize("wanted", [["q_proj", "embed_tokens"], ["lm_head"]])
def test_layers_that_are_not_linear_are_refused(base: LoadedBase, saved: Path, wanted: list[str]) -> None:
    change_config(saved, target_modules=wanted)
    with pytest.raises(UnsupportedAdapterError, match=wanted[-1]):
        load_adapter(base, saved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_tensor_and_file(
    base: LoadedBase, saved: Path, bad: float
) -> None:
    weights = load_file(saved / "adapter_model.safetensors")
    weights[f"{Q}.lora_B.weight"][3, 1] = bad
    save_file(weights, saved / "adapter_model.safetensors")
    with pytest.raises(NonFiniteWeightsError, match=rf"adapter_model\.safetensors: {Q}\.lora_B.*train again"):
        load_adapter(base, saved)


def test_a_refusal_leaves_the_base_as_it_was(base: LoadedBase, saved: Path, tmp_path: Path) -> None:
    expected = logits(base.model)
    names = [name for name, _ in base.model.named_modules()]
    weights = load_file(saved / "adapter_model.safetensors")
    for changes in ({"target_modules": ["nowhere"]}, {"target_modules": ["q_proj"]}, {"r": 5}):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        (broken / "adapter_config.json").write_bytes((saved / "adapter_config.json").read_bytes())
        save_file(weights, broken / "adapter_model.safetensors")
        change_config(broken, **changes)
        with pytest.raises(BaseMismatchError, match="does not fit"):
            load_adapter(base, broken)
        assert [name for name, _ in base.model.named_modules()] == names
        assert torch.equal(logits(base.model), expected)
    load_adapter(base, saved)  # without a warning of PEFT that there already is an adapter


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
