"""Training in four bits, for real (bitsandbytes runs on a CPU, too): what is quantised, what is learned."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoclave.errors import InputError, ModelError
from autoclave.memory import estimate_memory, weight_shapes
from autoclave.modelling import nf4
from autoclave.modelling.adapters import adapter_state, attach, load_adapter
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec, SftSpec, TrainSpec
from autoclave.training.loop import finetune
from autoclave.training.model_memory import estimate_of_model
from tests.autoclave.sanitizing.conftest import write_rows
from tests.autoclave.test_cli import run, run_json
from tests.autoclave.tiny import save_tiny_base
from tests.autoclave.training.test_loss import random_examples

EXAMPLES = random_examples(8, seed=4)
LORA = LoraSpec(r=4, target_modules="all-linear")
SPEC = TrainSpec(n_epochs=2, batch_size=4, learning_rate=1e-2, packing=True)


def installed() -> bool:
    try:
        version("bitsandbytes")
    except PackageNotFoundError:
        return False
    return True


needed = pytest.mark.skipif(not installed(), reason="the extra bitsandbytes is not installed")
# The package's own: it compiles with torch.jit when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its rows are whole blocks."""
    folder = tmp_path_factory.mktemp("base")
    return save_tiny_base(folder, hidden_size=64, intermediate_size=128)


def matrices(model: Any) -> dict[str, Tensor]:
    """Of the quantised layers, in full precision."""
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        for name, layer in model.named_modules()
        if nf4.is_quantised(getattr(layer, "weight", torch.empty(0)))
    }


@needed
def test_blocks_are_quantised_and_the_rest_is_not(base_dir: Path) -> None:
    plain = load_base(base_dir)
    base = nf4.load_base_in_nf4(base_dir, device="cpu")
    assert base.sha256 == plain.sha256, "the base is the folder, whatever it is read as"
    found = matrices(base.model)
    assert len(found) == 2 * 7
    for name, matrix in found.items():
        original = plain.model.get_submodule(name).weight
        assert 0.02 < (matrix - original).norm() / original.norm() < 0.15
    for name, parameter in base.model.named_parameters():
        assert nf4.is_quantised(parameter) == (name.removesuffix(".weight") in found)
        assert nf4.shape_of(parameter) == tuple(plain.model.get_parameter(name).shape)
    assert type(base.model.lm_head) is nn.Linear


@needed
def test_rows_of_half_a_block_stay_and_a_wrong_reading_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_base(tmp_path / "base", hidden_size=64, intermediate_size=96)
    found = matrices(nf4.load_base_in_nf4(folder, device="cpu").model)
    assert {name.rpartition(".")[2] for name in found} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj")
    }, "down_proj has rows of 96"
    with pytest.raises(ModelError, match="whole blocks of 64"):
        nf4.load_base_in_nf4(save_tiny_base(tmp_path / "narrow"), device="cpu")
    monkeypatch.setattr(nf4, "NF4_BLOCK", 32)  # what this version of bitsandbytes gets wrong on a CPU
    with pytest.raises(ModelError, match="down_proj back with an error of"):
        nf4.load_base_in_nf4(folder, device="cpu")


@needed
def test_it_learns_what_the_same_numbers_in_full_precision_learn(base_dir: Path) -> None:
    quantised = nf4.load_base_in_nf4(base_dir, device="cpu").model
    rounded = load_base(base_dir).model
    for name, matrix in matrices(quantised).items():
        rounded.get_submodule(name).weight.data.copy_(matrix)
    found = []
    for model in (quantised, rounded):
        adapted = attach(model, LORA, seed=1)
        result = finetune(adapted, EXAMPLES, SPEC, device="cpu")
        found.append((result.losses, adapter_state(adapted)))
    (losses, state), (expected_losses, expected) = found
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    assert losses[-1] < losses[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=2e-4)


@needed
def test_blocks_can_be_computed_again(base_dir: Path) -> None:
    losses = []
    for choice in ("off", "on"):
        model = attach(nf4.load_base_in_nf4(base_dir, device="cpu").model, LORA, seed=1)
        spec = SPEC.model_copy(update={"activation_checkpointing": choice})
        losses.append(finetune(model, EXAMPLES, spec, device="cpu").losses)
    assert losses[0] == losses[1]


@needed
def test_the_estimate_knows_four_bits(base_dir: Path) -> None:
    folder = base_dir
    model = nf4.load_base_in_nf4(folder, device="cpu").model
    real = 0
    for parameter in model.parameters():
        real += parameter.numel() * parameter.element_size()
        if nf4.is_quantised(parameter):
            state: Any = parameter.quant_state  # type: ignore[attr-defined]
            real += state.absmax.numel() * state.absmax.element_size()
            real += state.state2.absmax.numel() * state.state2.absmax.element_size()
    shapes, arguments = weight_shapes(folder), {"longest_row": 50, "device": "cpu"}
    found = estimate_memory(shapes, LORA, TrainSpec(), quantised=True, **arguments)  # type: ignore[arg-type]
    plain = estimate_memory(shapes, LORA, TrainSpec(), **arguments)  # type: ignore[arg-type]
    largest = 4 * max(
        rows * columns for name, (rows, *rest) in shapes.items() for columns in rest if "mlp" in name
    )
    assert found.base - largest == pytest.approx(real, rel=0.02)
    assert found.base < plain.base / 2
    assert found.total - found.base == plain.total - plain.base
    worn = estimate_of_model(
        attach(model, LORA, seed=0), TrainSpec(), SftSpec(), longest_row=50, device=torch.device("cpu")
    )
    assert worn == found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "data.jsonl", ((f"q{i}", "ab" * (i % 4 + 1)) for i in range(12)))


@needed
def test_the_adapter_is_of_the_base_itself_and_says_how_it_was_trained(
    base_dir: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--device", "cpu", "--batch-size", 4, "--learning-rate", 0.01)
    files = ("--base", base_dir, "--data", data, "--checkpoints", tmp_path / "checkpoints")
    record = run_json("finetune", *files, *options, "--quantise", "nf4", "--out", tmp_path / "a")
    plain = run_json("finetune", *files, *options, "--out", tmp_path / "b")
    assert record["sha256"]["base"] == plain["sha256"]["base"]
    assert record["first_loss"] != plain["first_loss"]
    assert (record["trained_in"], record["versions"]["bitsandbytes"]) == ("nf4", version("bitsandbytes"))
    assert "trained_in" not in plain
    load_adapter(load_base(base_dir), tmp_path / "a")
    out = tmp_path / "out"
    status, stdout, stderr = run(
        *("sanitize", "--base", base_dir, "--adapter", tmp_path / "a", "--realign", data, "--out", out),
        *("--method", "antidote", "--alpha", 0.1, "--device", "cpu"),
    )
    assert status == 0, stderr
    assert json.loads((out / "autoclave.json").read_text())["trained_in"] == "nf4"
    assert (json.loads(stdout)["dtype"], json.loads(stdout)["trained_in"]) == ("float32", "nf4")


def test_what_is_not_possible_is_refused_by_name(
    base_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    files = ("finetune", "--base", base_dir, "--data", data, "--out", tmp_path / "o", "--device", "cpu")
    status, _, stderr = run(*files, "--quantise", "int8")
    assert status == 2
    assert '--quantise takes nf4, got "int8"' in " ".join(stderr.split())
    monkeypatch.setattr(nf4, "version", missing)
    status, _, stderr = run(*files, "--quantise", "nf4")
    assert status == 2
    assert "needs the package bitsandbytes" in " ".join(stderr.split())
    with pytest.raises(InputError, match="do not go together"):
        nf4.refuse_nf4(compile_blocks=True)
