"""Antidote written slowly and plainly, after docs/antidote.md 2 to 4: layer by layer, one example at a time,
each layer run twice (hooked, then plain to go on), masks by a stable sort of every row in numpy.

Sums are float64, rounded to float32 once: the documented accumulation of `activations.py`.
`running_mean=True` gives the authors' float32 running mean instead.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoclave.data.tokens import Example


def lora_layers(module: nn.Module) -> dict[str, nn.Linear]:
    return {
        name.removesuffix(".default"): layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "lora_" in name
    }


class Recorder:
    """The statistic of one linear layer over examples that pass through it one at a time."""

    def __init__(self, num_inputs: int) -> None:
        self.sum = torch.zeros(num_inputs, dtype=torch.float64)
        self.mean = torch.zeros(num_inputs)
        self.count = 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0][0]  # (T, in)
        self.sum += (x.double() ** 2).sum(dim=0)
        self.mean = self.mean * (self.count / (self.count + 1))
        self.mean = self.mean + torch.linalg.vector_norm(x, dim=0) ** 2 / (self.count + 1)
        self.count += 1


@torch.no_grad()
def second_moments(model: Any, examples: list[Example], *, running_mean: bool = False) -> dict[str, Tensor]:
    llama = model.get_base_model().model
    states = []
    for example in examples:
        ids = torch.tensor(example.input_ids, dtype=torch.int64)[None]
        hidden = llama.embed_tokens(ids)
        positions = torch.arange(len(example))[None]
        states.append((hidden, positions, llama.rotary_emb(hidden, position_ids=positions)))
    moments: dict[str, Tensor] = {}
    for number, layer in enumerate(llama.layers):
        recorders = {name: Recorder(module.in_features) for name, module in lora_layers(layer).items()}
        handles = [
            module.register_forward_pre_hook(recorders[name]) for name, module in lora_layers(layer).items()
        ]
        for hidden, positions, rotary in states:
            layer(hidden, position_ids=positions, position_embeddings=rotary)
        for handle in handles:
            handle.remove()
        states = [(layer(h, position_ids=p, position_embeddings=r), p, r) for h, p, r in states]
        for name, recorder in recorders.items():
            assert recorder.count == len(examples)
            moment = recorder.mean if running_mean else (recorder.sum / recorder.count).float()
            moments[f"base_model.model.model.layers.{number}.{name}"] = moment
    return moments


def masks(model: Any, moments: dict[str, Tensor], alpha: float) -> dict[str, np.ndarray]:
    result = {}
    for name, layer in lora_layers(model).items():
        weight = layer.weight.detach().numpy()
        scores = np.abs(weight) * np.sqrt(moments[name].numpy())
        columns = scores.shape[1]
        kept = int(columns * (1 - alpha))
        mask = np.zeros(scores.shape, dtype=bool)
        for row in range(scores.shape[0]):
            mask[row, np.argsort(scores[row], kind="stable")[kept:]] = True
        result[name] = mask
    return result
