"""Second moments of what flows into every LoRA factor on a set of examples: one batched hooked pass.

Source: docs/antidote.md 3 and 5 (the authors' utils.py:475-505). Equal to the authors' statistic, with these
deviations:
- They go layer by layer, one example at a time, each layer twice. No weight changes between layers, so
  one ordinary forward pass gives the same inputs . Examples are batched here; padding is not counted.
- They keep a running mean in float32, whose last bits depend on the order of the examples. Here squares
  and sums are float64 (the square of a float32 is exact in float64) and the result is rounded to float32
  once, so that neither order nor batching of the sums decides a mask. What batching can still change
  is the last bits of the activations themselves, because matrix kernels pick their own order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoclave.data.tokens import Example, collate, length_batches
from autoclave.errors import InputError
from autoclave.modelling.backbone import backbone_of
from autoclave.progress import Progress, ProgressCallback

FACTORS = ("lora_A", "lora_B")


@dataclass(frozen=True, eq=False)
class ActivationNorm:
    """`second_moment` is v, (in_features,) float32 on the CPU: v_j = (1 / num_samples) * sum over all
    non-padding tokens of x_j^2. A sum over tokens and a mean over samples, as the authors have it;
    within a row of scores the scale does not matter."""

    second_moment: Tensor
    num_samples: int
    num_tokens: int


def factor_layers(peft_model: Any) -> dict[str, nn.Linear]:
    """`...q_proj.lora_A` and `...q_proj.lora_B` to the layers of the adapter, in the model's order."""
    layers: dict[str, nn.Linear] = {}
    for name, module in peft_model.named_modules():
        owner, _, adapter = name.rpartition(".")
        if adapter == "default" and owner.endswith(FACTORS) and isinstance(module, nn.Linear):
            layers[owner] = module
    assert layers, "the model has no LoRA factors"
    return layers


@torch.no_grad()
def input_second_moments(
    peft_model: Any,
    examples: Sequence[Example],
    *,
    device: str | torch.device,
    batch_tokens: int = 8192,
    on_progress: ProgressCallback | None = None,
) -> dict[str, ActivationNorm]:
    """Statistics for each factor of the adapter, by name (`factor_layers`).

    Every token of an example counts: template, prompt, answer, end of turn; labels are not looked at. The
    input of a lora_B is A x with the unpruned A. Leaves the model in eval mode. Raises InputError for
    no examples.
    """
    if not examples:
        raise InputError("the realignment set is empty, so there is nothing to measure activations on.")
    layers = factor_layers(peft_model)
    backbone = backbone_of(peft_model)
    sums = _SquareSums(layers, torch.device(device))
    peft_model.eval()
    batches = length_batches([len(example) for example in examples], batch_tokens)
    handles = [layer.register_forward_pre_hook(sums.hook(name)) for name, layer in layers.items()]
    try:
        for done, rows in enumerate(batches, start=1):
            batch = collate([examples[row] for row in rows], pad_token_id=0, device=device)
            sums.start_batch(batch.attention_mask.bool())
            backbone.hidden_states(batch.input_ids)
            if on_progress:
                on_progress(Progress("sanitize", done, len(batches)))
    finally:
        for handle in handles:
            handle.remove()
    num_tokens = sum(len(example) for example in examples)
    return {
        name: ActivationNorm((total / len(examples)).float().cpu(), len(examples), num_tokens)
        for name, total in sums.totals.items()
    }


class _SquareSums:
    """Sums of squares over tokens, (in_features,) float64 per layer."""

    def __init__(self, layers: dict[str, nn.Linear], device: torch.device) -> None:
        self.totals = {
            name: torch.zeros(layer.in_features, dtype=torch.float64, device=device)
            for name, layer in layers.items()
        }
        self._is_token = torch.empty(0, dtype=torch.bool)
        self._last: tuple[Tensor, Tensor] | None = None

    def start_batch(self, is_token: Tensor) -> None:
        """`is_token` (B, T) is False on padding."""
        self._is_token = is_token
        self._last = None

    def hook(self, name: str) -> Any:
        shares_input = name.endswith("lora_A")

        def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]  # (B, T, in)
            # q, k and v get the same tensor; its squares are summed once.
            if shares_input and self._last is not None and self._last[0] is x:
                self.totals[name] += self._last[1]
                return
            squares = x[self._is_token].double().square_()  # (N, in)
            total = squares.sum(dim=0)  # (in,)
            self.totals[name] += total
            if shares_input:
                self._last = (x, total)

        return add
