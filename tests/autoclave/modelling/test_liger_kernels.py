"""Liger's kernels: refused where they do not run; what they replace is put back. They run on CUDA alone: here
a package of the same shape stands in for them, which replaces what Liger replaces by plain torch."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers.models.llama import modeling_llama

from autoclave.errors import InputError, ModelError
from autoclave.modelling import liger_kernels as kernels
from autoclave.modelling.adapters import attach
from autoclave.spec import LoraSpec, TrainSpec
from autoclave.training.loop import finetune
from tests.autoclave.sanitizing.conftest import write_rows
from tests.autoclave.test_cli import run
from tests.autoclave.tiny_architectures import tiny_model
from tests.autoclave.training.test_loss import random_examples


def test_refused_on_a_cpu_and_where_it_is_not_installed(
    base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "data.jsonl", ((f"q{i}", "ab") for i in range(12)))
    files = ("--base", base_dir, "--data", data, "--out", tmp_path / "o", "--device", "cpu")
    status, _, stderr = run("finetune", *files, "--liger")
    assert (status, (tmp_path / "o").exists()) == (2, False)
    assert "--liger is for CUDA" in stderr

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(kernels, "version", missing)
    with pytest.raises(InputError, match="liger-kernel, which is not installed"):
        kernels.refuse_liger_on("cuda")
    monkeypatch.setattr(kernels, "version", lambda _: "0.8.5")
    kernels.refuse_liger_on("cuda:0")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A stand-in with Liger's way of replacing: a function of the module, forwards of the model's norms."""
    seen: dict[str, Any] = {"norms": 0, "ropes": 0, "wrong_by": 0.0}
    rope = modeling_llama.apply_rotary_pos_emb

    def counted_rope(*arguments: Any, **named: Any) -> Any:
        seen["ropes"] += 1
        return rope(*arguments, **named)

    def norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        seen["norms"] += 1
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * (hidden * scale) + seen["wrong_by"]

    def apply(
        *, rope: bool = True, cross_entropy: bool = False, fused_linear_cross_entropy: bool = True, model: Any
    ) -> None:
        assert rope
        assert not cross_entropy
        assert not fused_linear_cross_entropy, "the loss is ours"
        modeling_llama.apply_rotary_pos_emb = counted_rope
        for module in model.modules():
            if type(module) is modeling_llama.LlamaRMSNorm:
                module.forward = MethodType(norm, module)
                module.offset = 0.0

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].MODEL_TYPE_TO_APPLY_LIGER_FN = {"llama": apply}  # type: ignore[attr-defined]
    return seen


def adapted(architecture: str = "llama") -> Any:
    return attach(tiny_model(architecture), LoraSpec(r=4, target_modules="all-linear"), seed=1)


def state_of(model: Any) -> list[set[str]]:
    return [set(vars(module)) for module in model.modules()]


def test_training_inside_and_the_model_as_it_was_after(calls: dict[str, Any]) -> None:
    examples, spec = random_examples(8, seed=4), TrainSpec(n_epochs=1, batch_size=4)
    expected = finetune(adapted(), examples, spec, device="cpu").losses
    model = adapted()
    before, rope = state_of(model), modeling_llama.apply_rotary_pos_emb
    with kernels.liger_kernels(model):
        assert modeling_llama.apply_rotary_pos_emb is not rope
        found = finetune(model, examples, spec, device="cpu").losses
    assert found == pytest.approx(expected, abs=1e-5)
    assert calls["norms"] > 0
    assert calls["ropes"] > 0
    count = calls["norms"]
    finetune(model, examples, spec, device="cpu")
    assert (calls["norms"], state_of(model)) == (count, before)
    assert modeling_llama.apply_rotary_pos_emb is rope


def test_other_numbers_and_unknown_architectures_are_refused(calls: dict[str, Any]) -> None:
    model = adapted()
    before, rope = state_of(model), modeling_llama.apply_rotary_pos_emb
    calls["wrong_by"] = 1.0
    with pytest.raises(ModelError, match="other numbers than its own"), kernels.liger_kernels(model):
        pass
    assert state_of(model) == before
    assert modeling_llama.apply_rotary_pos_emb is rope
    with pytest.raises(ModelError, match="no kernels for OPT"), kernels.liger_kernels(adapted("opt")):
        pass
