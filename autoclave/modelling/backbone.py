"""A causal language model as two parts: the decoder that gives hidden states, and the output head.

The loss needs logits at trained positions only; computing the head on those alone saves most of the
memory and time of a large vocabulary. Works through the PEFT wrapper. Not for encoder-decoder models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoclave.errors import ModelError


@dataclass(frozen=True)
class Backbone:
    """`decoder(input_ids=...)` returns an object with `last_hidden_state`; `head` maps it to logits, which
    the model then multiplies by `logit_scale` and, with `softcap` c, turns into c * tanh(logits / c)."""

    decoder: Any
    head: Any
    logit_scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V), as the whole model gives them."""
        logits: Tensor = self.head(hidden)
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def hidden_states(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """(B, T) -> (B, T, D). No mask is passed: attention is causal and padding stands on the right, so
        no real token sees any, and the fast causal kernel can be used. `position_ids` (B, T) are 0, 1, ...
        unless given."""
        positions = {} if position_ids is None else {"position_ids": position_ids}
        output = self.decoder(input_ids=input_ids, use_cache=False, **positions)
        hidden = output.last_hidden_state  # (B, T, D)
        assert isinstance(hidden, Tensor), type(hidden)
        return hidden


def backbone_of(model: Any) -> Backbone:
    """Splits a transformers causal model or a PEFT model around one. Raises ModelError if it has no
    separate decoder or no output head."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    name = type(causal).__name__
    head = causal.get_output_embeddings()
    decoder = causal.base_model
    if head is None:
        raise ModelError(f"{name} has no output embeddings, so it is no language model to fine-tune.")
    if decoder is causal:
        raise ModelError(f"{name} has no decoder apart from its head; its architecture is not supported.")
    config = causal.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0)  # Cohere
    scale /= float(getattr(config, "logits_scaling", None) or 1.0)  # Granite
    return Backbone(decoder, head, scale, getattr(config, "final_logit_softcapping", None) or None)


@torch.no_grad()
def verify_backbone(model: Any) -> None:
    """Runs eight tokens both ways and compares the logits.

    Raises ModelError for models that do more to their logits than scale and soft-cap them, whose loss would
    be wrong here. Two forward passes of eight tokens; leaves the model's mode as it was.
    """
    backbone = backbone_of(model)
    was_training = model.training
    model.eval()
    try:
        vocab_size = backbone.head.weight.shape[0]
        input_ids = torch.arange(8, device=backbone.head.weight.device)[None] * 7 % vocab_size  # (1, 8)
        whole = model(input_ids=input_ids, use_cache=False).logits.float()  # (1, 8, V)
        split = backbone.logits(backbone.hidden_states(input_ids)).float()  # (1, 8, V)
    finally:
        model.train(was_training)
    difference = (whole - split).abs().max().item()
    if not difference <= 1e-3 * whole.abs().max().item():
        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        raise ModelError(
            f"{type(causal).__name__} does more to its logits than its output head, a scale and a "
            f"soft cap (they differ by {difference:.3g}), which the training loss does not support."
        )
