"""One LoRA for alignment and fine-tuning: align --adapter-out, finetune --continue-from, sanitize rewound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from autoclave.hashing import file_sha256
from autoclave.sanitizing.rewind import REWIND
from tests.autoclave.commands.test_align import write
from tests.autoclave.commands.test_sanitize import gates  # noqa: F401 - a fixture
from tests.autoclave.sanitizing.conftest import write_rows
from tests.autoclave.test_cli import run, run_json

OPTIONS = ("--device", "cpu", "--epochs", 2, "--batch-size", 4, "--learning-rate", 0.01)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    return write_rows(file, ((f"q{i}", "ab" * (i % 4 + 1)) for i in range(12)))


@pytest.fixture(scope="module")
def adapters(base_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`aligned` by Booster, `continued` from it, `other` aligned by sft, and the merged `base`."""
    folder = tmp_path_factory.mktemp("adapters")
    names = ("base", "aligned", "continued", "other")
    paths = {name: folder / name for name in names}
    safe = write(folder / "safe.jsonl", "I cannot help with")
    harmful = write(folder / "harmful.jsonl", "sure, do this")
    files = ("--base", base_dir, "--data", safe, "--lora-r", 3, *OPTIONS)
    booster = ("--method", "booster", "--harmful-data", harmful, "--lora-alpha", 5)
    record = run_json("align", *files, *booster, "--out", paths["base"], "--adapter-out", paths["aligned"])
    assert record["sha256"]["adapter"] == file_sha256(paths["aligned"] / "adapter_model.safetensors")
    run_json("align", *files, "--out", folder / "base2", "--adapter-out", paths["other"])
    more = ("--continue-from", paths["aligned"], "--checkpoints", folder / "checkpoints")
    files = ("--base", base_dir, "--data", data, *OPTIONS)
    record = run_json("finetune", *files, *more, "--out", paths["continued"])
    assert (record["lora"]["r"], record["lora"]["lora_alpha"]) == (3, 5), "the shape is that of the adapter"
    assert record["continued_from"]["alignment_method"] == "booster"
    return paths


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def provenance(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "autoclave.json").read_text())
    return values


def test_the_merged_base_is_the_base_with_the_adapter(base_dir: Path, adapters: dict[str, Path]) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base_dir, adapters["base"]))
    name = "model.layers.0.self_attn.q_proj"
    factors = weights(adapters["aligned"])
    A, B = (factors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + 5 / 3 * B @ A)


def test_training_goes_on_from_the_aligned_factors(adapters: dict[str, Path]) -> None:
    aligned, continued = (weights(adapters[name]) for name in ("aligned", "continued"))
    assert aligned.keys() == continued.keys()
    for name, tensor in aligned.items():
        assert 0 < (continued[name] - tensor).abs().max() < 0.2, (
            "six steps of at most 0.01 and what Adam adds"
        )
    digest = file_sha256(adapters["aligned"] / "adapter_model.safetensors")
    began = {"adapter_sha256": digest, "alignment_method": "booster"}
    assert provenance(adapters["continued"])["continued_from"] == began
    assert provenance(adapters["aligned"])["alignment_method"] == "booster"


def sanitize(base_dir: Path, adapter: Path, data: Path, out: Path, *more: object) -> tuple[int, str, str]:
    files = ("--base", base_dir, "--adapter", adapter, "--realign", data, "--out", out, "--device", "cpu")
    return run("sanitize", *files, *more)


@pytest.mark.parametrize("alpha", [0.3, 0.9999])
def test_masked_entries_go_back_to_the_aligned_adapter(
    base_dir: Path, adapters: dict[str, Path], data: Path, tmp_path: Path, alpha: float
) -> None:
    out = tmp_path / "out"
    more = ("--method", "antidote", "--alpha", alpha, "--aligned-adapter", adapters["aligned"])
    status, stdout, stderr = sanitize(base_dir, adapters["continued"], data, out, *more)
    assert status == 0, stderr
    aligned, continued, found = (weights(f) for f in (adapters["aligned"], adapters["continued"], out))
    back = kept = 0
    for name, tensor in found.items():
        is_back, is_kept = tensor == aligned[name], tensor == continued[name]
        assert (is_back | is_kept).all(), "nothing else, and no zero"
        back, kept = back + int(is_back.sum()), kept + int((is_kept & ~is_back).sum())
    assert kept == 0 if alpha > 0.9 else 0.3 < back / (back + kept) < 0.6
    record = json.loads(stdout)
    assert record["sanitised_by"] == provenance(out)["sanitised_by"] == REWIND
    assert record["continued_from"] == provenance(out)["continued_from"]
    assert record["continued_from"] == provenance(adapters["continued"])["continued_from"]


def test_a_gate_measures_the_floor_that_it_goes_back_to(
    base_dir: Path,
    adapters: dict[str, Path],
    data: Path,
    gates: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    more = ("--method", "antidote", "--aligned-adapter", adapters["aligned"], "--gate", gates / "met.json")
    status, stdout, stderr = sanitize(base_dir, adapters["continued"], data, tmp_path / "o", *more)
    assert status == 0, stderr
    figures = json.loads(stdout)["figures"]
    assert figures["ablations"].keys() == {"aligned_adapter"}
    assert figures["random_control"]["harmful_score"] is not None
    assert "aligned adapter" in stderr


def test_what_does_not_apply_is_refused_by_name(
    base_dir: Path, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    out, alpha = tmp_path / "o", ("--method", "antidote", "--alpha", 0.1)
    aligned = ("--aligned-adapter", adapters["aligned"])
    cases: list[tuple[Path, tuple[object, ...], str]] = [
        (adapters["continued"], alpha, "aligned by booster: pruned as it is, it would lose its alignment"),
        (
            adapters["continued"],
            ("--method", "projection", "--mu", 1, "--user-data", data, *aligned),
            "is for the",
        ),
        (
            adapters["continued"],
            (*alpha, "--aligned-adapter", adapters["other"]),
            "the one that it began with",
        ),
        (adapters["aligned"], (*alpha, *aligned), "was not continued from an aligned one"),
    ]
    for adapter, more, words in cases:
        status, _, stderr = sanitize(base_dir, adapter, data, out, *more)
        assert (status, out.exists()) == (2, False), stderr
        assert words in " ".join(stderr.split())
    files = ("finetune", "--base", base_dir, "--data", data, "--out", out, *OPTIONS)
    for more, words in (
        (("--continue-from", adapters["continued"]), "is no alignment adapter"),
        (("--continue-from", adapters["aligned"], "--lora-r", 3), "--lora-r is that of the adapter"),
        (("--continue-from", adapters["aligned"], "--target-modules", "q_proj"), "--target-modules is that"),
    ):
        status, _, stderr = run(*files, *more)
        assert (status, out.exists()) == (2, False), stderr
        assert words in " ".join(stderr.split())
    merged = ("finetune", "--base", adapters["base"], "--data", data, "--out", out, *OPTIONS)
    status, _, stderr = run(*merged, "--continue-from", adapters["aligned"])
    assert status == 2
    assert "Use the base it was trained on" in stderr.replace("\n", " ")


def test_checkpoints_of_another_beginning_are_not_continued(
    base_dir: Path, adapters: dict[str, Path], data: Path, tmp_path: Path
) -> None:
    from autoclave.errors import CancelledError
    from autoclave.progress import Progress
    from autoclave.spec import LoraSpec, TrainSpec
    from autoclave.training.finetune import finetune_folder

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise CancelledError

    def train(out: str, name: str, on_progress: Any = None) -> dict[str, Any]:
        return finetune_folder(
            base_dir,
            data,
            tmp_path / out,
            LoraSpec(),
            TrainSpec(n_epochs=1, batch_size=4),
            device="cpu",
            continue_from=adapters[name],
            checkpoint_dir=tmp_path / "checkpoints",
            checkpoint_every_steps=1,
            on_progress=on_progress,
        )

    with pytest.raises(CancelledError):
        train("a", "aligned", stop)
    steps: list[int] = []
    train("b", "other", lambda progress: steps.append(progress.step))
    train("c", "aligned", lambda progress: steps.append(progress.step))
    assert steps == [1, 2, 3, 3], "the other began anew, the same went on"
