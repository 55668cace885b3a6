"""Places of names: blocks, routers, experts, attention."""

import pytest

from autoclave.modelling.block_names import adaptable, is_attention

NAMES = [
    "model.embed_tokens",
    "model.project_in",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.gate",
    "model.layers.0.mlp.shared_expert_gate",
    "model.layers.0.mlp.shared_expert.up_proj",
    "model.layers.0.mlp.experts.3.up_proj",
    "model.layers.1.mlp.gate",
    "model.layers.1.mlp.up_proj",
    "lm_head",
]


def test_only_blocks_without_routers_and_experts() -> None:
    """`mlp.gate` is a router where experts stand beside it, and a layer where none do."""
    assert adaptable(NAMES) == (
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.shared_expert.up_proj",
        "model.layers.1.mlp.gate",
        "model.layers.1.mlp.up_proj",
    )


def test_experts_that_are_one_tensor_are_seen_among_the_others() -> None:
    fused = [name for name in NAMES if ".experts." not in name]
    assert "model.layers.0.mlp.gate" in adaptable(fused)
    assert adaptable(fused, ["model.layers.0.mlp.experts.gate_up_proj"]) == adaptable(NAMES)
    assert adaptable(fused, ["model.layers.0.mlp.experts"]) == adaptable(NAMES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.0.self_attn.qkv_proj", True),
        ("gpt_neox.layers.11.attention.query_key_value", True),
        ("transformer.h.0.self_attention.dense", True),
        ("transformer.h.0.mlp.dense_h_to_4h", False),
        ("model.layers.0.fc1", False),
        ("attention_model.layers.0.mlp.up_proj", False),
    ],
)
def test_attention_is_named_by_what_holds_it(name: str, expected: bool) -> None:
    assert is_attention(name) is expected
