"""Tiny random models of the architectures people bring, for what must hold on each of them.

Norm weights and biases are random too: as they are initialised (ones and zeros), a procedure that forgot
them would pass.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.autoclave.tiny import tiny_config, tiny_tokenizer

# Shorter than the examples of the tests, so that it shows.
SLIDING_WINDOW = 7


def _shape(**changes: Any) -> dict[str, Any]:
    config = tiny_config().to_diff_dict()
    return {key: value for key, value in config.items() if key != "model_type"} | changes


def _opt() -> OPTConfig:
    return OPTConfig(
        vocab_size=262,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        init_std=0.2,
    )


_LLAMA3_POSITIONS = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": SLIDING_WINDOW}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}

_BUILD: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(tiny_config()),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_shape(sliding_window=SLIDING_WINDOW))),
    # Full attention in the first layer, a sliding window in the second.
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**_shape(use_sliding_window=True, sliding_window=SLIDING_WINDOW, max_window_layers=1))
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_shape(head_dim=16))),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**_shape(head_dim=8, tie_word_embeddings=True))),
    "opt": lambda: OPTForCausalLM(_opt()),
}
ARCHITECTURES = tuple(_BUILD)
"""One of each kind of decoder: for tests that are dear."""

_BUILD |= {
    # Every head has its own keys, as in Llama 2.
    "llama2": lambda: LlamaForCausalLM(tiny_config(num_key_value_heads=4)),
    # As the small ones of Llama 3.2: grouped, scaled positions, tied.
    "llama3": lambda: LlamaForCausalLM(
        tiny_config(tie_word_embeddings=True, rope_parameters=_LLAMA3_POSITIONS)
    ),
    "qwen2.5": lambda: Qwen2ForCausalLM(Qwen2Config(**_shape(tie_word_embeddings=True))),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **_shape(
                **_GEMMA, tie_word_embeddings=True, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
            )
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **_shape(**_GEMMA, tie_word_embeddings=True, layer_types=["sliding_attention", "full_attention"])
        )
    ),
    "phi": lambda: PhiForCausalLM(PhiConfig(**_shape())),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_shape(sliding_window=SLIDING_WINDOW))),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**_shape(num_local_experts=4, num_experts_per_tok=2, sliding_window=None))
    ),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**_shape(**_EXPERTS, num_experts=4, shared_expert_intermediate_size=24))
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**_shape(**_EXPERTS, num_experts=4, head_dim=8))),
}
ALL_ARCHITECTURES = tuple(_BUILD)

# transformers has it without sdpa attention: it caps its scores.
EAGER = frozenset({"gemma2"})


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """A causal model in eval mode, float32, with the attention that `load_base` would choose."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILD[architecture]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    attention = "eager" if architecture in EAGER else "sdpa"
    assert model.config._attn_implementation == attention, "as load_base has it"
    return model.eval().requires_grad_(False)


def save_tiny_architecture(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A base folder with the tokenizer of `tests.autoclave.tiny`."""
    tiny_model(architecture, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
