"""Every option of LoRA is decided on, and what is more than plain LoRA is refused by its name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftType
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from autoclave.errors import ModelError, UnsupportedAdapterError
from autoclave.modelling import adapter_policy
from autoclave.modelling.adapter_policy import (
    CARRIED,
    UNSUPPORTED,
    WITHOUT_EFFECT,
    lora_config,
    refuse_other_layers,
)
from tests.autoclave.tiny import tiny_config

PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj", "v_proj"]}

# A value of each unsupported option that turns it on.
ON: dict[str, Any] = {
    "use_dora": True,
    "bias": "lora_only",
    "lora_bias": True,
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [1],
    "target_parameters": ["experts.gate_up_proj"],
    "layer_replication": [[0, 1]],
    "fan_in_fan_out": True,
    "ensure_weight_tying": True,
    "alora_invocation_tokens": [5, 6],
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "kasa_config": {},
    "monteclora_config": {},
    "arrow_config": {},
    "velora_config": {},
    "megatron_config": {"hidden_size": 32},
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "lora_ga_config": {},
}


def test_every_option_of_the_installed_peft_is_decided_on() -> None:
    tables = [set(CARRIED), set(WITHOUT_EFFECT), set(UNSUPPORTED)]
    assert sum(map(len, tables)) == len(set.union(*tables)), "an option is in two tables"
    undecided = {field.name for field in dataclasses.fields(LoraConfig)} - set.union(*tables)
    assert not undecided, f"decide in adapter_policy.py what becomes of {sorted(undecided)}"


def test_a_configuration_as_peft_writes_it_is_taken_over(tmp_path: Path) -> None:
    theirs = LoraConfig(
        r=3,
        lora_alpha=5,
        lora_dropout=0.25,
        use_rslora=True,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"v_proj": 7},
        target_modules=["q_proj", "v_proj"],
        exclude_modules=["layers.1.self_attn.q_proj"],
        layers_to_transform=[0, 1],
        layers_pattern="layers",
        task_type="CAUSAL_LM",
        init_lora_weights="gaussian",
        base_model_name_or_path="org/base",
        revision="main",
        inference_mode=True,
    )
    theirs.save_pretrained(str(tmp_path))
    ours = lora_config(json.loads((tmp_path / "adapter_config.json").read_text()), "a")
    for name in CARRIED:
        assert getattr(ours, name) == getattr(theirs, name), name


def test_every_unsupported_option_has_a_value_here() -> None:
    assert ON.keys() == UNSUPPORTED.keys()


@pytest.mark.parametrize("option", ON)
def test_an_option_beyond_plain_lora_is_refused_by_name_with_the_reason(option: str) -> None:
    with pytest.raises(UnsupportedAdapterError) as caught:
        lora_config(PLAIN | {option: ON[option]}, "folder/a")
    assert f"folder/a uses {option}" in str(caught.value)
    assert UNSUPPORTED[option] in str(caught.value)
    lora_config(PLAIN | {option: None}, "folder/a")


@pytest.mark.parametrize(
    "initialisation",
    [
        "pissa",
        "pissa_niter_4",
        "olora",
        "eva",
        "loftq",
        "corda",
        "lora_ga",
        "orthogonal",
        "mica",
        "next year's",
    ],
)
def test_another_initialisation_is_refused_by_name(initialisation: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f'"{initialisation}" \\(init_lora_weights\\)'):
        lora_config(PLAIN | {"init_lora_weights": initialisation}, "a")


@pytest.mark.parametrize("initialisation", [True, False, None, "gaussian"])
def test_initialisations_that_leave_the_base_alone(initialisation: Any) -> None:
    lora_config(PLAIN | {"init_lora_weights": initialisation}, "a")


@pytest.mark.parametrize("peft_type", [*(t.value for t in PeftType if t != PeftType.LORA), "NEW", None, 7])
def test_another_type_of_adapter_is_refused_by_name(peft_type: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match=f"is a {peft_type} adapter"):
        lora_config(PLAIN | {"peft_type": peft_type}, "a")


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS"])
def test_a_task_with_a_head_of_its_own_is_refused(task_type: str) -> None:
    with pytest.raises(UnsupportedAdapterError, match=task_type):
        lora_config(PLAIN | {"task_type": task_type}, "a")


@pytest.mark.parametrize("value", [True, 1, 0.5, "on", {}, {"k": 1}, ["x"]])
def test_an_option_that_nobody_knows_is_refused_when_on(value: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match="sets hyper_lora, which this version does not know"):
        lora_config(PLAIN | {"hyper_lora": value}, "a")


@pytest.mark.parametrize("value", [None, False, []])
def test_an_option_that_nobody_knows_may_be_off(value: Any) -> None:
    assert not hasattr(lora_config(PLAIN | {"hyper_lora": value}, "a"), "hyper_lora")


def test_an_option_of_a_newer_peft_is_refused_unless_at_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """qalora_group_size (default 16) stands in for the field that nobody has decided on yet."""
    rest = tuple(name for name in WITHOUT_EFFECT if name != "qalora_group_size")
    monkeypatch.setattr(adapter_policy, "WITHOUT_EFFECT", rest)
    lora_config(PLAIN | {"qalora_group_size": 16}, "a")
    with pytest.raises(UnsupportedAdapterError, match="sets qalora_group_size"):
        lora_config(PLAIN | {"qalora_group_size": 8}, "a")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("r", 0),
        ("r", 1.5),
        ("r", True),
        ("r", "8"),
        ("lora_alpha", float("nan")),
        ("lora_alpha", "16"),
        ("lora_dropout", 1.0),
        ("lora_dropout", -0.1),
        ("use_rslora", "yes"),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", {"q_proj": None}),
        ("rank_pattern", [4]),
        ("rank_pattern", {"(": 4}),
        ("alpha_pattern", {"q_proj": float("inf")}),
        ("target_modules", "*"),
        ("target_modules", [1]),
        ("target_modules", {"q_proj": 1}),
        ("exclude_modules", "("),
        ("layers_pattern", 3),
        ("layers_to_transform", "0"),
    ],
)
def test_a_value_that_means_nothing_is_named(option: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"a: {option} in adapter_config.json"):
        lora_config(PLAIN | {option: value}, "a")


def test_values_that_contradict_each_other() -> None:
    with pytest.raises(ModelError, match="is not a LoRA configuration"):
        lora_config(PLAIN | {"layers_pattern": ["layers"]}, "a")


@pytest.mark.parametrize("wanted", [None, [], ""])
def test_layers_that_peft_would_have_to_guess_are_refused(wanted: Any) -> None:
    with pytest.raises(UnsupportedAdapterError, match="has no target_modules"):
        lora_config(PLAIN | {"target_modules": wanted}, "a")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (["q_proj", "embed_tokens"], r"model\.embed_tokens, which is embeddings"),
        (["lm_head"], r"the output head \(lm_head\)"),
        (r".*\.(q_proj|norm)", r"model\.norm, which is a LlamaRMSNorm"),
        (["short_conv"], r"model\.short_conv, which is a Conv1d"),
    ],
)
def test_layers_that_are_not_linear_are_refused_by_name(wanted: Any, words: str) -> None:
    model = LlamaForCausalLM(tiny_config())
    model.model.short_conv = nn.Conv1d(2, 2, 1)
    before = [name for name, _ in model.named_modules()]
    config = lora_config(PLAIN | {"target_modules": wanted}, "a")
    with pytest.raises(UnsupportedAdapterError, match=words):
        refuse_other_layers(model, config, "a")
    assert [name for name, _ in model.named_modules()] == before


@pytest.mark.parametrize("wanted", ["all-linear", ["c_attn"]])
def test_the_transposed_layers_of_gpt2_are_refused(wanted: Any) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    config = lora_config(PLAIN | {"target_modules": wanted}, "a")
    with pytest.raises(UnsupportedAdapterError, match=r"c_attn, which is a Conv1D"):
        refuse_other_layers(model, config, "a")


@pytest.mark.parametrize("wanted", ["all-linear", ["q_proj", "down_proj"], r".*layers\.0\.mlp\..*_proj"])
def test_linear_layers_are_accepted(wanted: Any) -> None:
    config = lora_config(PLAIN | {"target_modules": wanted}, "a")
    refuse_other_layers(LlamaForCausalLM(tiny_config()), config, "a")
    assert config.target_modules == (set(wanted) if isinstance(wanted, list) else wanted)
