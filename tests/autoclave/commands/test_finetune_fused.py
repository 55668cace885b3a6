"""autoclave finetune --fuse: the adapters it writes, and what it refuses before anything is loaded."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.modelling.adapters import load_adapter
from autoclave.modelling.bases import load_base
from tests.builders import chat_line

OF_THE_FUSE = ("fused_with", "seconds", "peak_memory_bytes", "sha256", "first_loss", "last_loss")
# What all jobs of a fuse share, and no one of them says.
SHARED = ("estimated_memory_bytes", "micro_batch_tokens", "activation_checkpointing", "processes")
# What fused jobs do not have.
ALONE = ("liger", "quantise")


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def entries(tmp_path: Path) -> list[dict[str, Any]]:
    files = []
    for name in ("a", "b", "c"):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(chat_line(f"{name} {i}", f"{i} and {name}") + "\n" for i in range(12)))
        files.append(file)
    train = {"n_epochs": 2, "batch_size": 4}
    return [
        {"data": str(files[0]), "out": str(tmp_path / "one"), "lora": {"r": 3}, "train": train},
        {
            "data": str(files[1]),
            "out": str(tmp_path / "two"),
            "validation": str(files[2]),
            "base_name": "org/base",
            "lora": {"r": 2, "target_modules": "all-linear"},
            "train": train | {"seed": 4, "learning_rate": 1e-3},
        },
    ]


def fuse(base_dir: Path, entries: Any, tmp_path: Path, *more: object) -> tuple[int, str, str]:
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps(entries))
    return run("finetune", "--base", base_dir, "--fuse", file, "--device", "cpu", *more)


def test_every_entry_becomes_the_adapter_it_would_be_alone(
    base_dir: Path, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    status, out, err = fuse(base_dir, entries, tmp_path)
    assert status == 0, err
    jobs = json.loads(out)["jobs"]
    options = ("--base", base_dir, "--device", "cpu", "--epochs", 2, "--batch-size", 4)
    others = ("--target-modules", "all-linear", "--seed", 4, "--learning-rate", 1e-3)
    separate = [
        ("--lora-r", 3),
        ("--validation", entries[1]["validation"], "--base-name", "org/base", "--lora-r", 2, *others),
    ]
    for index, (entry, own) in enumerate(zip(entries, separate, strict=True)):
        alone = tmp_path / f"alone{index}"
        status, out, err = run("finetune", "--data", entry["data"], "--out", alone, *options, *own)
        assert status == 0, err
        record = json.loads(out)
        fused = Path(entry["out"])
        for name in set(record) - set(OF_THE_FUSE) - set(SHARED) - set(ALONE) - {"best_valid_loss"}:
            assert jobs[index][name] == record[name], name
        assert jobs[index]["fused_with"] == 1
        assert jobs[index]["last_loss"] == pytest.approx(record["last_loss"], rel=1e-5)
        assert jobs[index]["sha256"]["data"] == record["sha256"]["data"]
        for name in ("adapter_config.json", "autoclave.json"):
            assert (fused / name).read_text() == (alone / name).read_text(), name
        weights, expected = (load_file(folder / "adapter_model.safetensors") for folder in (fused, alone))
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-5)
        written = json.loads((fused / "training.json").read_text())
        separate_keys = json.loads((alone / "training.json").read_text()).keys()
        assert written.keys() == separate_keys - {"processes", *ALONE} | {"fused_with"}
        load_adapter(load_base(base_dir), fused)


def test_a_job_that_diverges_has_no_folder_and_the_others_have_theirs(
    base_dir: Path, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    entries[0]["lora"]["lora_alpha"] = 1e15
    entries[0]["train"] = {"n_epochs": 4, "batch_size": 4, "learning_rate": 1.0, "max_grad_norm": 1e30}
    status, out, _ = fuse(base_dir, entries, tmp_path, "--fuse-width", 2)
    assert status == 1
    first, second = json.loads(out)["jobs"]
    assert first["error"]["code"] == "non_finite_loss"
    assert not Path(entries[0]["out"]).exists()
    assert "error" not in second
    assert Path(entries[1]["out"], "adapter_model.safetensors").is_file()
    assert not list(tmp_path.glob(".*partial*"))


@pytest.mark.parametrize(
    ("index", "changes", "words"),
    [
        (1, {"data": "none.jsonl"}, "entry 2: .*No such file"),
        (1, {"out": "one"}, "entry 2: .* is the output of entry 1 already"),
        (0, {"train": {"n_epochs": 99}}, "entry 1: train.n_epochs: Input should be less than"),
        (0, {"train": {"epochs": 2}}, "entry 1: train.epochs: Extra inputs"),
        (0, {"method": "lisa"}, "entry 1: method: Extra inputs"),
        (0, {"lora": {"lora_dropout": 0.1}}, "entry 1: lora.lora_dropout must be 0"),
        (1, {"train": {"micro_batch_tokens": 99}}, "entry 2: train.micro_batch_tokens bounds"),
        (0, {"train": {"early_stopping": {"patience": 1}}}, "entry 1: train.early_stopping needs validation"),
    ],
    ids=str,
)
def test_wrong_entries_are_named_before_the_base_is_loaded(
    entries: list[dict[str, Any]], tmp_path: Path, index: int, changes: dict[str, Any], words: str
) -> None:
    if changes.get("out") == "one":
        changes = {"out": entries[0]["out"]}
    entries[index] |= changes
    status, out, err = fuse(tmp_path / "no-base", entries, tmp_path)
    assert (status, out) == (2, "")
    assert re.search(words, " ".join(err.split())), err


def test_wrong_data_and_taken_folders_are_named(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    Path(entries[1]["data"]).write_text("{}\n")
    status, _, err = fuse(tmp_path / "no-base", entries, tmp_path)
    assert status == 2
    assert "entry 2" in err
    Path(entries[0]["out"]).mkdir()
    (Path(entries[0]["out"]) / "x").touch()
    status, _, err = fuse(tmp_path / "no-base", entries, tmp_path)
    assert status == 2
    assert "entry 1" in err
    assert "exists already" in err


@pytest.mark.parametrize("content", ["[]", "{}", "nonsense"])
def test_a_file_that_is_no_list_of_jobs_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    file.write_text(content)
    status, _, err = run("finetune", "--base", tmp_path, "--fuse", file)
    assert status == 2
    assert "jobs.json" in err


@pytest.mark.parametrize(
    "options", [("--epochs", 3), ("--data", "x.jsonl"), ("--method", "lisa"), ("--checkpoints", "x")], ids=str
)
def test_options_of_one_job_do_not_go_with_it(
    entries: list[dict[str, Any]], tmp_path: Path, options: tuple[object, ...]
) -> None:
    status, _, err = fuse(tmp_path / "no-base", entries, tmp_path, *options)
    assert status == 2
    assert f"{options[0]} is of one job" in err


def test_one_of_data_and_fuse_is_needed(tmp_path: Path) -> None:
    status, _, err = run("finetune", "--base", tmp_path)
    assert status == 2
    assert "--data and --out are needed" in err


def test_activation_checkpointing_is_of_all_jobs(
    base_dir: Path, entries: list[dict[str, Any]], tmp_path: Path
) -> None:
    entries[1]["train"]["activation_checkpointing"] = "on"
    status, _, err = fuse(base_dir, entries, tmp_path)
    assert status == 2
    assert "entry 2: train.activation_checkpointing is of the passes of all jobs" in " ".join(err.split())
    del entries[1]["train"]["activation_checkpointing"]
    status, _, err = fuse(base_dir, entries, tmp_path, "--activation-checkpointing", "sometimes")
    assert status == 2
    assert "activation_checkpointing" in err
    assert fuse(base_dir, entries, tmp_path, "--activation-checkpointing", "on")[0] == 0


def test_tokens_are_kept_for_the_next_run(
    base_dir: Path, entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    assert fuse(base_dir, entries, tmp_path, "--token-cache", cache)[0] == 0
    assert len(list(cache.glob("*.safetensors"))) == 3, "two trainings and a validation"
    first = load_file(Path(entries[0]["out"]) / "adapter_model.safetensors")
    for entry in entries:
        entry["out"] += "-again"
    monkeypatch.setattr("autoclave.data.token_cache.encode", None)  # nobody tokenises
    status, _, err = fuse(base_dir, entries, tmp_path, "--token-cache", cache)
    assert status == 0, err
    again = load_file(Path(entries[0]["out"]) / "adapter_model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
