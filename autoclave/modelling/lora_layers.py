"""Which layers of a model are computed by `lora_linear`, and where their factors come from.

`short_lora` is for a PEFT model, `RowsByJob` for several jobs' adapters on one base. Modules keep their
places and their hooks; what is replaced is how they compute, and it is put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.nn import functional

from autoclave.modelling.lora_linear import gated_mlp, lora_linears
from autoclave.modelling.lora_products import Factors, Layer, Segment

LayerOf = Callable[[int], Layer | None]
"""The layer for a pass of so many rows; None where the module has to compute it itself."""

_ON_THE_SAME_ROWS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
_GATED = ("gate_proj", "up_proj", "down_proj")
_TOLERANCE = 1e-4  # of the largest number; another formula differs far more


@contextmanager
def short_lora(peft_model: Any, *, joined: bool = True) -> Iterator[int]:
    """Inside the block, the adapted layers of a PEFT model are computed by `lora_linear` where that gives the
    same: plain LoRA without dropout on frozen linear layers. Others stay with PEFT. Yields how many are
    changed. With `joined`, layers that read the same rows are computed together; not for torch.compile."""
    layers = {m: _layer_of(m) for m in peft_model.modules() if _is_plain(m) and "forward" not in vars(m)}
    with _computed(peft_model, layers, joined=joined):
        yield len(layers)


class RowsByJob:
    """Adapters of several jobs on one base, of which each row goes through one.

    `adapters[j]` holds the factors of job j by the full name of the layer. Inside `installed`, the rows
    of a pass are those that `rows` says: `(job, start, end)` without a gap, once for all tokens of the pass
    and once for those that the last MLP may be left with (`last_mlp.py`); or with `only(job)` all of one.
    """

    def __init__(self, model: Any, adapters: Sequence[Mapping[str, Factors]]) -> None:
        self._adapters = adapters
        self._model = model
        self.rows: Sequence[Sequence[tuple[int, int, int]]] = ()
        self._only: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        layers: dict[nn.Module, LayerOf] = {}
        for name in sorted({name for adapter in self._adapters for name in adapter}):
            module = self._model.get_submodule(name)
            assert type(module) is nn.Linear, (name, type(module))
            layers[module] = self._layer_of(name, module)
        with _computed(self._model, layers, joined=True):
            yield

    @contextmanager
    def only(self, job: int) -> Iterator[None]:
        """All rows of the passes inside the block are of this job."""
        self._only = job
        try:
            yield
        finally:
            self._only = None

    def _rows(self, num_rows: int) -> Sequence[tuple[int, int, int]]:
        if self._only is not None:
            return ((self._only, 0, num_rows),)
        for rows in self.rows:
            if rows[-1][2] == num_rows:
                return rows
        raise AssertionError((num_rows, self.rows))

    def _layer_of(self, name: str, module: nn.Linear) -> LayerOf:
        def layer(num_rows: int) -> Layer:
            segments = [
                Segment(start, end, self._adapters[job][name])
                for job, start, end in self._rows(num_rows)
                if name in self._adapters[job]
            ]
            return Layer(module.weight, module.bias, segments)

        return layer


def _is_plain(module: Any) -> bool:
    if type(module) is not PeftLinear or len(module.active_adapters) != 1:
        return False
    (name,) = module.active_adapters
    base, layers = module.base_layer, [module.lora_A[name], module.lora_B[name]]
    return (
        type(base) is nn.Linear
        and not module.merged
        and name not in module.lora_variant
        and not getattr(module.lora_dropout[name], "p", 0.0)
        and not any(p.requires_grad for p in base.parameters())
        and all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (base, *layers))
    )


def _layer_of(module: Any) -> LayerOf:
    (name,) = module.active_adapters
    base, A, B, scale = module.base_layer, module.lora_A[name], module.lora_B[name], module.scaling[name]

    def layer(num_rows: int) -> Layer | None:
        if module.disable_adapters or module.merged:
            return None
        segment = Segment(0, num_rows, Factors(A.weight, B.weight, scale))
        return Layer(base.weight, base.bias, (segment,))

    return layer


@contextmanager
def _computed(model: Any, layers: Mapping[nn.Module, LayerOf], *, joined: bool) -> Iterator[None]:
    forwards: dict[nn.Module, Any] = {}
    for module, layer in layers.items():
        forwards[module] = _SameRows([layer]).forward_of(0, module)
    for parent in model.modules() if joined else ():
        children = dict(parent.named_children())
        for names in _ON_THE_SAME_ROWS:
            together = [children[name] for name in names if children.get(name) in layers]
            same_rows = _SameRows([layers[module] for module in together])
            for index, module in enumerate(together):
                forwards[module] = same_rows.forward_of(index, module)
        if any(children.get(name) in layers for name in _GATED) and _is_gated_mlp(parent, children):
            forwards[parent] = _forward_of_mlp(parent, layers)
    with ExitStack() as stack:
        for module, forward in forwards.items():
            stack.enter_context(_forward_replaced(module, forward))
        yield


class _Kept(NamedTuple):
    inputs: Tensor
    version: int
    has_graph: bool
    outputs: dict[int, Tensor]


class _SameRows:
    """Layers that are called one after the other with the same tensor: the first call computes all, and the
    others take theirs. A call with another tensor is computed alone."""

    def __init__(self, layers: Sequence[LayerOf]) -> None:
        self._layers = layers
        self._kept: _Kept | None = None

    def forward_of(self, index: int, module: nn.Module) -> Any:
        plain = module.forward

        def forward(inputs: Tensor, *others: Any, **named: Any) -> Tensor:
            output: Tensor | None = None
            if not others and not named:
                output = self._kept_for(index, inputs) if index else self._first(inputs)
            if output is None:
                layer = self._layers[index](_num_rows(inputs)) if not others and not named else None
                output = (
                    plain(inputs, *others, **named) if layer is None else lora_linears(inputs, [layer])[0]
                )
            assert isinstance(output, Tensor), type(output)
            return output

        return forward

    def _first(self, inputs: Tensor) -> Tensor | None:
        self._kept = None
        known = [layer for layer_of in self._layers if (layer := layer_of(_num_rows(inputs))) is not None]
        if len(known) < max(2, len(self._layers)):
            return None
        first, *others = lora_linears(inputs, known)
        self._kept = _Kept(
            inputs, _version(inputs), torch.is_grad_enabled(), dict(enumerate(others, start=1))
        )
        return first

    def _kept_for(self, index: int, inputs: Tensor) -> Tensor | None:
        kept = self._kept
        if kept is None or kept.inputs is not inputs:
            return None
        if (kept.version, kept.has_graph) != (_version(inputs), torch.is_grad_enabled()):
            return None
        output = kept.outputs.pop(index, None)
        if not kept.outputs:
            self._kept = None
        return output


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _num_rows(inputs: Tensor) -> int:
    return inputs.numel() // inputs.shape[-1]


def _forward_of_mlp(mlp: nn.Module, layers: Mapping[nn.Module, LayerOf]) -> Any:
    modules = [mlp.get_submodule(name) for name in _GATED]
    plain = mlp.forward

    def layer_of(module: nn.Module, num_rows: int) -> Layer | None:
        if module._forward_hooks or module._forward_pre_hooks:
            return None
        if module in layers:
            return layers[module](num_rows)
        linear = _frozen_linear(module)
        return None if linear is None else Layer(linear.weight, linear.bias, ())

    def forward(inputs: Tensor) -> Tensor:
        known = [layer_of(module, _num_rows(inputs)) for module in modules]
        gate, up, down = known
        if gate is None or up is None or down is None:
            output: Tensor = plain(inputs)
            return output
        return gated_mlp(inputs, gate, up, down)

    return forward


@torch.no_grad()
def _is_gated_mlp(module: nn.Module, children: Mapping[str, Any]) -> bool:
    """Whether it is down(silu(gate(x)) * up(x)), found by computing four rows both ways."""
    if set(children) != {*_GATED, "act_fn"} or "forward" in vars(module):
        return False
    gate, up, down = (children[name] for name in _GATED)
    linear = _frozen_linear(gate)
    if linear is None or _frozen_linear(up) is None or _frozen_linear(down) is None:
        return False
    if any(child._forward_hooks or child._forward_pre_hooks for child in children.values()):
        return False
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4, linear.in_features, generator=generator).to(linear.weight)  # (4, D)
    # Not called, or hooks would see what is no part of the run.
    expected, found = module.forward(rows), down(functional.silu(gate(rows)) * up(rows))
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max())


def _frozen_linear(module: Any) -> nn.Linear | None:
    """The linear layer that is computed, with or without a plain adapter on it."""
    linear = module.base_layer if _is_plain(module) else module
    if type(linear) is not nn.Linear or any(p.requires_grad for p in linear.parameters()):
        return None
    return linear


@contextmanager
def _forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    assert "forward" not in vars(module), f"{type(module).__name__} has a forward of its own already"
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
