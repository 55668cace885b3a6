"""Second-moment matrices of what flows into the adapted layers, streamed over a set of examples.

Layers that read the same tensor (q, k and v; gate and up) share one matrix. Memory is one batch and the
matrices of the inputs asked for, so large models are done in several passes (`in_groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoclave.data.tokens import Example, collate, length_batches
from autoclave.modelling.backbone import backbone_of
from autoclave.progress import Progress, ProgressCallback

FLOAT64_BYTES = 8


@dataclass(frozen=True)
class AdaptedInput:
    """One tensor that adapted layers read, by the names of those layers' lora_A, and its width."""

    lora_a_names: tuple[str, ...]
    num_features: int

    @property
    def name(self) -> str:
        return self.lora_a_names[0]


def lora_modules(peft_model: Any) -> dict[str, nn.Module]:
    """The module that holds each lora_A, by the name of that lora_A (as in `activations.factor_layers`), in
    the model's order. Its input is what lora_A gets before any cast, the same tensor for q, k and v."""
    return {
        f"{name}.lora_A": module
        for name, module in peft_model.named_modules()
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict) and "default" in module.lora_A
    }


@torch.no_grad()
def adapted_inputs(peft_model: Any, *, device: str | torch.device) -> list[AdaptedInput]:
    """Finds out which layers share their input by running two tokens through the model."""
    modules = lora_modules(peft_model)
    seen: list[tuple[Tensor, list[str]]] = []

    def hook(name: str) -> Any:
        def remember(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shared = next((names for tensor, names in seen if tensor is inputs[0]), None)
            if shared is None:
                seen.append((inputs[0], [name]))
            else:
                shared.append(name)

        return remember

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        backbone_of(peft_model).hidden_states(torch.zeros((1, 2), dtype=torch.int64, device=device))
    finally:
        for handle in handles:
            handle.remove()
    found = [AdaptedInput(tuple(names), tensor.shape[-1]) for tensor, names in seen]
    missing = modules.keys() - {name for names in found for name in names.lora_a_names}
    # A mixture's experts may not be chosen by two tokens; each is then an input of its own.
    found += [AdaptedInput((name,), modules[name].in_features) for name in modules if name in missing]  # type: ignore[arg-type]
    return found


def in_groups(inputs: Sequence[AdaptedInput], max_bytes: int, *, copies: int) -> list[list[AdaptedInput]]:
    """Cuts `inputs` into runs whose matrices, `copies` of each in float64, fit into `max_bytes`. An input
    that alone is too large is a run of its own."""
    groups: list[list[AdaptedInput]] = []
    used = 0
    for item in inputs:
        size = copies * FLOAT64_BYTES * item.num_features**2
        if not groups or used + size > max_bytes:
            groups.append([])
            used = 0
        groups[-1].append(item)
        used += size
    return groups


@torch.no_grad()
def second_moments(
    peft_model: Any,
    examples: Sequence[Example],
    inputs: Sequence[AdaptedInput],
    *,
    device: str | torch.device,
    batch_tokens: int = 8192,
    on_progress: ProgressCallback | None = None,
) -> dict[str, Tensor]:
    """C = sum over all tokens of x x^T, scaled to trace 1, by the name of the input: (d, d) float64 on
    `device`. Zero for an input that no example reaches.

    Every token counts (template, prompt, answer), as in Antidote's pass. Sums are float64. The products of
    one batch are float64 on CPU too; on CUDA they are float32, whose error is below that of bfloat16
    activations and far below the ridge. Leaves the model in eval mode.
    """
    on_cpu = torch.device(device).type == "cpu"
    modules = lora_modules(peft_model)
    sums = {
        item.name: torch.zeros((item.num_features,) * 2, dtype=torch.float64, device=device)
        for item in inputs
    }
    backbone = backbone_of(peft_model)
    is_token = torch.empty(0, dtype=torch.bool)

    def hook(name: str) -> Any:
        def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0]
            # An expert gets rows of the batch that were picked already, none of them padding's concern.
            rows = x[is_token] if x.shape[:2] == is_token.shape else x.flatten(0, -2)  # (N, d)
            rows = rows.double() if on_cpu else rows.float()
            sums[name] += rows.T @ rows

        return add

    peft_model.eval()
    batches = length_batches([len(example) for example in examples], batch_tokens)
    handles = [modules[item.name].register_forward_pre_hook(hook(item.name)) for item in inputs]
    try:
        for done, chosen in enumerate(batches, start=1):
            batch = collate([examples[row] for row in chosen], pad_token_id=0, device=device)
            is_token = batch.attention_mask.bool()
            backbone.hidden_states(batch.input_ids)
            if on_progress:
                on_progress(Progress("sanitize", done, len(batches)))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / trace if (trace := total.trace()) > 0 else total for name, total in sums.items()}
