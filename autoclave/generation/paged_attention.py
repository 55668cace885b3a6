"""Attention over the paged cache of continuous batching by torch's variable-length kernel: each prompt
against its own keys, without a mask over those of all.

For CUDA in half precision where no flash attention is installed. Untried on a GPU when it was written, so it
is used under the trial of `trial.py` alone. Elsewhere the same is computed prompt by prompt, for tests.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import AttentionInterface

from autoclave.modelling.varlen_attention import Kernel, by_example, torch_kernel_for

# "flash" in it tells transformers that no mask is needed.
NAME = "autoclave_paged_flash"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")


def _attention(  # noqa: PLR0917 - transformers calls it so
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cache: Any = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In transformers' form: (1, heads, T, D) each -> (1, T, heads, D), T new tokens of all prompts."""
    assert attention_mask is None, "transformers makes no mask for an attention it does not know"
    assert cache is not None, f"{NAME} is for continuous batching"
    unsupported = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if unsupported or dropout:
        raise NotImplementedError(f"paged attention with {unsupported or 'dropout'}")
    # Writes the new keys and gives those of each whole prompt (or window), one prompt after the other.
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=others)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # (T or S, heads, D)
    kernel: Kernel = torch_kernel_for(q) or by_example
    output = kernel(
        *(q, k, v),
        others["cu_seq_lens_q"],
        others["cu_seq_lens_k"],
        others["max_length_q"],
        others["max_length_k"],
        scale=scaling,
        # A window of w tokens is the token itself and w - 1 before it.
        window_size=(-1, 0) if sliding_window is None else (sliding_window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output[None], None


AttentionInterface.register(NAME, _attention)
