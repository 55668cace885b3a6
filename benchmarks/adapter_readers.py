"""Whether llama.cpp's converter and vLLM's loader, themselves, read a released adapter as it was meant.

    pip download --no-deps --no-binary :all: llama-cpp-python   # unpack: vendor/llama.cpp has the converter
    pip download --no-deps vllm                                 # unpack: vllm/lora has the loader
    python benchmarks/adapter_readers.py ADAPTER BASE --llama-cpp FOLDER/vendor/llama.cpp --vllm FOLDER \\
        --out benchmarks/results

ADAPTER is an unpacked package, BASE the folder of its base, a Llama. Neither server is installed, and neither
runs a model here. The converter runs whole, in a process of its own; of the GGUF file that it writes, every
product B A is compared with that of the package, in llama.cpp's order of the rows of q and k (the two halves
of a head, interleaved). Of vLLM `peft_helper.py`, `lora_model.py` and `utils.py` run as they are; what they
import beside is a stand-in. Writes `adapter_readers.json`.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from machine import folder_for, machine
from safetensors.torch import load_file

from autoclave.hashing import file_sha256
from autoclave.memory import weight_shapes

Products = dict[str, np.ndarray[Any, Any]]
"""Name of a layer in the base to B A, (out, in)."""
RANK_OF_VLLM = 16  # --max-lora-rank, where none is given


def main() -> int:
    parser = argparse.ArgumentParser(description="A released adapter, read by others.")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of convert_lora_to_gguf.py")
    parser.add_argument("--vllm", type=Path, required=True, help="folder of an unpacked wheel")
    parser.add_argument("--out", type=folder_for, help="folder for adapter_readers.json")
    arguments = parser.parse_args()
    adapter, base = arguments.adapter, arguments.base
    ours = products_of(load_file(adapter / "adapter_model.safetensors"))
    result = {
        "command": "python benchmarks/adapter_readers.py ADAPTER BASE --llama-cpp FOLDER --vllm FOLDER",
        "layers": len(ours),
        "llama_cpp": read_by_llama_cpp(arguments.llama_cpp, adapter, base, ours),
        "vllm": read_by_vllm(arguments.vllm, adapter, base, ours),
        "machine": machine("torch", "transformers", "safetensors"),
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text, end="")
    if arguments.out:
        (arguments.out / "adapter_readers.json").write_text(text)
    return 0


def products_of(tensors: dict[str, torch.Tensor]) -> Products:
    found = {}
    for name, a in tensors.items():
        if name.endswith(".lora_A.weight"):
            b = tensors[name.replace(".lora_A.", ".lora_B.")]
            layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            found[layer] = (b.double() @ a.double()).numpy()
    return found


def read_by_llama_cpp(folder: Path, adapter: Path, base: Path, ours: Products) -> dict[str, Any]:
    sys.path.insert(0, str(folder / "gguf-py"))
    import gguf

    converter = folder / "convert_lora_to_gguf.py"
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "adapter.gguf"
        command = [sys.executable, str(converter), str(adapter), "--base", str(base), "--outfile", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        reader = gguf.GGUFReader(file)
        factors = {tensor.name: np.array(tensor.data, dtype=np.float64) for tensor in reader.tensors}
        alpha = reader.get_field("adapter.lora.alpha")
        kind = reader.get_field("adapter.type")
    config = json.loads((base / "config.json").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    differences = []
    for layer, product in ours.items():
        theirs = names.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        found = factors.pop(f"{theirs}.lora_b") @ factors.pop(f"{theirs}.lora_a")
        differences.append(float(np.abs(found - in_order(layer, product, config)).max()))
    assert not factors, f"the file has {sorted(factors)} too"
    return {
        "converter_sha256": file_sha256(converter),
        "adapter_type": str(kind.contents()),
        "alpha": float(alpha.contents()),
        "largest_difference": max(differences),
    }


def in_order(layer: str, product: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(layer.rpartition(".")[2])
    if heads is None:
        return product
    rows, columns = product.shape
    halves = product.reshape(config[heads], 2, rows // config[heads] // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def read_by_vllm(folder: Path, adapter: Path, base: Path, ours: Products) -> dict[str, Any]:
    sys.path.insert(0, str(folder))
    sys.meta_path.insert(0, StandIns())
    from vllm.lora import lora_model
    from vllm.lora.peft_helper import PEFTHelper

    lora_model.LoRALayerWeights, lora_model.PIN_MEMORY = Weights, False
    helper = PEFTHelper.from_local_dir(str(adapter), max_position_embeddings=None)
    helper.validate_legal(types.SimpleNamespace(max_lora_rank=RANK_OF_VLLM))
    expected = {layer.rpartition(".")[2] for layer in ours}
    model = lora_model.LoRAModel.from_local_checkpoint(
        str(adapter), expected, helper, lora_model_id=1, device="cpu"
    )
    assert set(model.loras) == set(ours), set(model.loras) ^ set(ours)
    shapes = weight_shapes(base)
    differences = []
    for layer, weights in model.loras.items():
        product = (weights.lora_b.double() @ weights.lora_a.double()).numpy()
        assert product.shape == shapes[f"{layer}.weight"], layer
        assert weights.scaling == helper.lora_alpha / helper.r, layer
        differences.append(float(np.abs(product - ours[layer]).max()))
    return {
        "sha256": {n: file_sha256(folder / "vllm/lora" / n) for n in ("peft_helper.py", "lora_model.py")},
        "rank": helper.r,
        "scaling": helper.vllm_lora_scaling_factor,
        "largest_difference": max(differences),
    }


class Weights:
    """In place of vLLM's LoRALayerWeights, whose module needs its GPU kernels."""

    def __init__(self, rank: int, scaling: float) -> None:
        self.rank = rank
        self.scaling = scaling
        self.lora_a = self.lora_b = torch.empty(0)

    @classmethod
    def from_config(cls, module_name: str, helper: Any, peft_module_name: str | None = None) -> Weights:
        return cls(*helper.get_rank_and_scaling(peft_module_name or module_name))


class StandIns:
    """Finds every module of vLLM but those that are looked at: empty, with any name that is asked for."""

    _real = frozenset(
        {"vllm", "vllm.lora", *(f"vllm.lora.{n}" for n in ("peft_helper", "lora_model", "utils"))}
    )

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.partition(".")[0] != "vllm" or name in self._real:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> Any:
        return MagicMock(name=spec.name, __path__=[], __name__=spec.name, __spec__=spec)

    def exec_module(self, module: Any) -> None:
        pass


if __name__ == "__main__":
    sys.exit(main())
