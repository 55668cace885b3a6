"""Which architectures cannot be a base, by name, from `config.json` alone, and why. No torch, nothing loaded.

What is not refused here is found out by loading: linear layers by structure (`target_modules`), the way
to the logits (`backbone`), whether padding is masked (`exactness`). Unknown names are therefore tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autoclave.errors import ModelError

_RECURRENT = (
    "it keeps a recurrent state, from which padding and neighbours in a batch cannot be masked, so that no "
    "answer of a batch would be exact"
)
_TRANSPOSED = "its linear layers are transposed (Conv1D), and masks of LoRA are defined for torch.nn.Linear"
_SENSES = "it takes images or sound, and its encoders are no decoder blocks. Use the text model of its family"

_BY_TYPE: dict[str, str] = {
    **dict.fromkeys(("gpt2", "openai-gpt", "imagegpt", "decision_transformer"), _TRANSPOSED),
    **dict.fromkeys(
        (
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "granitemoehybrid",
            "jamba",
            "kimi_linear",
            "lfm2",
            "lfm2_moe",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "recurrent_gemma",
            "rwkv",
            "xlstm",
            "zamba",
            "zamba2",
        ),
        _RECURRENT,
    ),
}
_RECURRENT_LAYERS = ("mamba", "linear_attention", "conv", "recurrent", "ssm")
_SENSE_KEYS = ("vision_config", "audio_config")


def refuse_architecture(config: Mapping[str, Any], source: str) -> None:
    """Raises ModelError, naming the architecture and the reason, for a `config.json` that no job can start
    from. `source` is the folder or the name of the base."""
    found = refusal(config)
    if found is not None:
        raise ModelError(f"{source}: {found}")


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why no job can start from a base with this configuration, in words that a tenant may read; None if
    nothing is known against it."""
    model_type = str(config.get("model_type") or "")
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else model_type
    if config.get("is_encoder_decoder"):
        return f"{named} is an encoder-decoder model; only decoder-only models are supported."
    quantised = quantisation(config)
    if quantised is not None:
        return (
            f"its weights are quantised ({quantised}), and what an update of them is worth depends on the "
            "kernels that read them. Use the model as it was before it was quantised."
        )
    reason = _BY_TYPE.get(model_type)
    if reason is None and any(config.get(key) for key in _SENSE_KEYS):
        reason = _SENSES
    layers = config.get("layer_types") or config.get("layers_block_type") or ()
    if reason is None and isinstance(layers, list):
        kinds = {str(layer) for layer in layers}
        if any(word in kind for kind in kinds for word in _RECURRENT_LAYERS):
            reason = _RECURRENT
    return None if reason is None else f"{named} is not supported: {reason}."


def quantisation(config: Mapping[str, Any]) -> str | None:
    """Such as "bitsandbytes, 4 bits"; None for weights that are plain numbers."""
    settings = config.get("quantization_config")
    if not settings:
        return None
    if not isinstance(settings, dict):
        return "in an unknown way"
    method = str(settings.get("quant_method") or "").strip()
    if settings.get("load_in_4bit"):
        return f"{method or 'bitsandbytes'}, 4 bits"
    if settings.get("load_in_8bit"):
        return f"{method or 'bitsandbytes'}, 8 bits"
    bits = settings.get("bits")
    return ", ".join([method or "in an unknown way"] + ([f"{bits} bits"] if type(bits) is int else []))
