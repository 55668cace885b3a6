"""Antidote written slowly and plainly, after docs/antidote.md 2 to 4: layer by layer, one example at a time,
each layer run twice (hooked, then plain to go on), masks by a stable sort of every row in numpy.

`norms` works on a float64 copy of the model, its norm layers and rotary tables written out in float64, sums
in float64 and rounds the mean of squares to float32 once. In float64 a comparison is one of procedure: in
float32, kernels that sum in another order for another shape already give other last bits.
`authors_norms` is float32 throughout, with the authors' running mean (utils.py:475-505).
"""

from collections.abc import Sequence
from copy import deepcopy
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
    """The statistics of one linear layer over examples that pass through it one at a time."""

    def __init__(self, num_inputs: int) -> None:
        self.sum_of_squares = torch.zeros(num_inputs, dtype=torch.float64)
        self.sum_of_norms = torch.zeros(num_inputs, dtype=torch.float64)
        self.running_mean = torch.zeros(num_inputs)
        self.count = 0

    def __call__(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].flatten(0, -2)  # (T, in); OPT's fc1 gets that, others (1, T, in)
        squares = (x.double() ** 2).sum(dim=0)
        self.sum_of_squares += squares
        self.sum_of_norms += torch.sqrt(squares)
        self.running_mean = self.running_mean * (self.count / (self.count + 1))
        norm = torch.linalg.vector_norm(x.float(), dim=0)
        self.running_mean = self.running_mean + norm**2 / (self.count + 1)
        self.count += 1


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The stack of decoder layers and its name in the PEFT model."""
    stacks = {n: m for n, m in model.named_modules() if n.endswith("layers") and isinstance(m, nn.ModuleList)}
    assert len(stacks) == 1, list(stacks)
    return next(iter(stacks.items()))


def layer_inputs(model: Any, example: Example) -> tuple[Tensor, list[dict[str, Any]]]:
    """What the first layer gets, (1, T, D), and the other arguments of every layer (mask, positions)."""
    arguments: list[dict[str, Any]] = []
    first: list[Tensor] = []
    _, layers = decoder_layers(model)

    def catch(_: nn.Module, inputs: tuple[Tensor], others: dict[str, Any]) -> Any:
        first.append(inputs[0])
        arguments.append({key: value for key, value in others.items() if key != "past_key_values"})

    handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        ids = torch.tensor(example.input_ids, dtype=torch.int64)[None]
        model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return first[0], arguments


@torch.no_grad()
def record(model: Any, examples: Sequence[Example]) -> dict[str, Recorder]:
    stack, layers = decoder_layers(model)
    inputs = [layer_inputs(model, example) for example in examples]
    states = [first for first, _ in inputs]
    recorders: dict[str, Recorder] = {}
    for number, layer in enumerate(layers):
        of_layer = {name: Recorder(module.in_features) for name, module in lora_layers(layer).items()}
        handles = [
            module.register_forward_pre_hook(of_layer[name]) for name, module in lora_layers(layer).items()
        ]
        for hidden, (_, arguments) in zip(states, inputs, strict=True):
            layer(hidden, **arguments[number])
        for handle in handles:
            handle.remove()
        states = [
            layer(hidden, **arguments[number]) for hidden, (_, arguments) in zip(states, inputs, strict=True)
        ]
        recorders |= {f"{stack}.{number}.{name}": recorder for name, recorder in of_layer.items()}
    assert all(recorder.count == len(examples) for recorder in recorders.values())
    return recorders


def norms(model: Any, examples: Sequence[Example], kind: str = "rms") -> dict[str, Tensor]:
    """rms: root of the mean over examples of the sum over tokens of squares; mean: mean of the roots."""
    recorders = record(in_float64(model), examples)
    if kind == "rms":
        return {n: torch.sqrt((r.sum_of_squares / r.count).float()) for n, r in recorders.items()}
    return {n: (r.sum_of_norms / r.count).float() for n, r in recorders.items()}


def authors_norms(model: Any, examples: Sequence[Example]) -> dict[str, Tensor]:
    return {n: torch.sqrt(r.running_mean) for n, r in record(model, examples).items()}


def scores(model: Any, norms: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {
        name: np.abs(layer.weight.detach().numpy()) * norms[name].numpy()
        for name, layer in lora_layers(model).items()
    }


def masks(model: Any, norms: dict[str, Tensor], alpha: float) -> dict[str, np.ndarray]:
    result = {}
    for name, matrix in scores(model, norms).items():
        columns = matrix.shape[1]
        kept = int(columns * (1 - alpha))
        mask = np.zeros(matrix.shape, dtype=bool)
        for row in range(matrix.shape[0]):
            mask[row, np.argsort(matrix[row], kind="stable")[kept:]] = True
        result[name] = mask
    return result


class PlainRMSNorm(nn.Module):
    def __init__(self, weight: Tensor, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + self.epsilon)


class PlainRotary(nn.Module):
    def __init__(self, frequencies: Tensor, scaling: float) -> None:
        super().__init__()
        self.frequencies, self.scaling = frequencies, scaling

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[0][:, None].double() * self.frequencies  # (T, head / 2)
        angles = torch.cat([angles, angles], dim=1)[None]
        return angles.cos() * self.scaling, angles.sin() * self.scaling


def in_float64(model: Any) -> Any:
    """A copy whose every operation is float64. transformers' RMS norms and rotary tables compute in float32
    whatever they are given, so they are replaced."""
    copy = deepcopy(model).double()
    if hasattr(copy.get_base_model().config, "num_experts_per_tok"):
        copy.get_base_model().set_experts_implementation("eager")  # the other one takes no float64
    for name, module in list(copy.named_modules()):
        kind = type(module).__name__
        replacement: nn.Module | None = None
        if kind == "Gemma3RotaryEmbedding":
            continue  # tables per kind of layer; float32 is near enough for the test of others
        if kind.startswith("Gemma") and kind.endswith("RMSNorm"):
            replacement = PlainRMSNorm(1 + module.weight.data, module.eps)
        elif kind.endswith("RMSNorm"):
            replacement = PlainRMSNorm(module.weight.data, module.variance_epsilon)
        elif kind.endswith("RotaryEmbedding"):
            replacement = PlainRotary(module.inv_freq, module.attention_scaling)
        if replacement is not None:
            owner, _, attribute = name.rpartition(".")
            setattr(copy.get_submodule(owner), attribute, replacement)
    return copy.eval()
