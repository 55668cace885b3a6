"""Tiny random models of the architectures people bring, for what must hold on each of them.

Norm weights and biases are random too: as they are initialised (ones and zeros), a procedure that forgot
them would pass.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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


# Gemma 2 is not here: transformers has it without sdpa attention, which load_base asks for.
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


def tiny_model(architecture: str, seed: int = 0) -> Any:
    """A causal model in eval mode with the sdpa kernels, float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILD[architecture]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn(parameter.shape) * 0.2)
    assert model.config._attn_implementation == "sdpa", "as load_base has it"
    return model.eval().requires_grad_(False)


def save_tiny_architecture(architecture: str, folder: Path, seed: int = 0) -> Path:
    """A base folder with the tokenizer of `tests.autoclave.tiny`."""
    tiny_model(architecture, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
