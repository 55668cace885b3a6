"""The estimate beside what a process really takes, on the shipped base; counts against the model."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from autoclave.errors import ModelError
from autoclave.memory import adapted_layers, estimate_memory, weight_shapes
from autoclave.spec import ActivationCheckpointing, LoraSpec, SftSpec, TrainSpec
from tests.autoclave.peak_memory import BASE, FACTOR, grown_bytes

ROWS, LENGTH = 16, 500


def test_parameters_are_those_of_the_model() -> None:
    from autoclave.modelling.adapters import attach
    from autoclave.modelling.bases import load_base

    base = load_base(BASE)
    shapes = weight_shapes(BASE)
    train = TrainSpec()
    for lora in (
        LoraSpec(r=4, target_modules="all-linear"),
        LoraSpec(r=3, target_modules=("q_proj", "up_proj")),
    ):
        found = estimate_memory(shapes, lora, train, longest_row=10, device="cpu")
        assert found.base == 4 * sum(p.numel() for p in base.model.parameters())
        model = attach(base.model, lora, seed=0)
        assert found.adapter == 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert found.optimizer == 3 * found.adapter
        model.unload()
    assert estimate_memory(shapes, lora, train, longest_row=10, device="cuda").base * 2 == found.base


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handed_back", "times_kept", "checkpointing"),
    [(False, 1, "off"), (True, 1.5, "off"), (True, 1.5, "on")],
)
def test_activations_are_within_the_factor_of_the_measured_peak(
    handed_back: bool, times_kept: float, checkpointing: ActivationCheckpointing
) -> None:
    measured = grown_bytes(ROWS, LENGTH, SftSpec(), handed_back=handed_back, checkpointing=checkpointing)
    found = estimate_memory(
        weight_shapes(BASE),
        LoraSpec(r=16, target_modules="all-linear"),
        TrainSpec(batch_size=ROWS, activation_checkpointing=checkpointing),
        longest_row=LENGTH,
        device="cpu",
    )
    estimated = found.activations / times_kept + found.optimizer
    assert measured / FACTOR <= estimated <= measured * FACTOR, (measured, estimated)


def test_a_longer_row_or_batch_takes_more_up_to_the_micro_batch() -> None:
    shapes = weight_shapes(BASE)

    def activations(longest_row: int, **train: int) -> int:
        return estimate_memory(
            shapes, LoraSpec(), TrainSpec(**train), longest_row=longest_row, device="cpu"
        ).activations

    assert activations(100) * 2 == activations(200)
    assert activations(100, batch_size=8) * 2 == activations(100, batch_size=16)
    assert activations(1000) == activations(2000)  # both fill the micro-batch of 8192 tokens
    assert activations(20_000) > activations(10_000)


def test_checkpointed_blocks_take_one_block_and_the_inputs_of_all() -> None:
    shapes = weight_shapes(BASE)
    lora = LoraSpec(r=16, target_modules="all-linear")

    def activations(train: TrainSpec, checkpointing: bool | None = None) -> int:
        return estimate_memory(
            shapes, lora, train, longest_row=100, device="cuda", checkpointing=checkpointing
        ).activations

    auto, on, off = (TrainSpec(activation_checkpointing=choice) for choice in ("auto", "on", "off"))  # type: ignore[arg-type]
    assert activations(auto) == activations(off) == activations(on, checkpointing=False)
    assert activations(on) == activations(auto, checkpointing=True)
    vocabulary, hidden = shapes["model.embed_tokens.weight"]
    tokens, num_layers = 1600, 4
    blocks = activations(off) - 12 * tokens * vocabulary
    inputs = 2 * tokens * num_layers * hidden
    assert activations(on) - 12 * tokens * vocabulary == blocks / num_layers + inputs


def test_only_linear_layers_are_adapted() -> None:
    layers = adapted_layers(weight_shapes(BASE), "all-linear")
    assert len(layers) == 7 * 4
    assert not any("embed" in name or "lm_head" in name or "norm" in name for name in layers)
    with pytest.raises(ModelError, match="names no linear layer"):
        adapted_layers(weight_shapes(BASE), ("nothing",))


@pytest.mark.parametrize(
    "content",
    [b"", b"1234", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 9) + b"{"],
)
def test_broken_weight_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        weight_shapes(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="not on this server"):
        weight_shapes(tmp_path)
    header = json.dumps(
        {"layers.0.a.weight": {"shape": [2, 3], "dtype": "F32", "data_offsets": [0, 24]}}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelError, match="no embedding"):
        estimate_memory(
            weight_shapes(tmp_path), LoraSpec(target_modules=("a",)), TrainSpec(), longest_row=1, device="cpu"
        )
