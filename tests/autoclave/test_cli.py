"""The command line end to end on the tiny base: folders in, folders out, JSON out, errors said once."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autoclave import __version__
from autoclave.cli import app
from autoclave.hashing import file_sha256


def run(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def run_json(*arguments: Any) -> dict[str, Any]:
    status, out, err = run(*arguments)
    assert status == 0, err
    value = json.loads(out)
    assert isinstance(value, dict)
    return value


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "data.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"q{i}"},
                {"role": "assistant", "content": "ab" * (i % 4 + 1)},
            ]
        }
        for i in range(12)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_finetune_sanitize_evaluate(base_dir: Path, data: Path, tmp_path: Path) -> None:
    train = ("finetune", "--base", base_dir, "--data", data, "--epochs", 2, "--batch-size", 4, "--seed", 7)
    options = ("--lora-r", 3, "--target-modules", "q_proj,v_proj", "--device", "cpu", "--learning-rate", 0.01)
    first = run_json(*train, *options, "--out", tmp_path / "a", "--base-name", "org/tiny")
    again = run_json(*train, *options, "--out", tmp_path / "b", "--base-name", "org/tiny")
    assert first["sha256"] == again["sha256"]
    losses = json.loads((tmp_path / "a" / "training.json").read_text())["losses"]
    assert losses == json.loads((tmp_path / "b" / "training.json").read_text())["losses"]
    assert len(losses) == first["steps"] == 6
    assert losses[-1] < losses[0]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["r"], config["target_modules"]) == (3, ["q_proj", "v_proj"])
    assert config["base_model_name_or_path"] == "org/tiny"

    record = run_json(
        *("sanitize", "--base", base_dir, "--adapter", tmp_path / "a", "--realign", data),
        *("--alpha", 0.1, "--method", "antidote", "--out", tmp_path / "s", "--device", "cpu"),
    )
    assert record["sha256"]["adapter_in"] == first["sha256"]["adapter"]
    assert record["sha256"]["adapter_out"] == file_sha256(tmp_path / "s" / "adapter_model.safetensors")

    for adapter in ((), ("--adapter", tmp_path / "s")):
        result = run_json(
            *("evaluate", "--base", base_dir, *adapter, "--prompts", data, "--judge", "refusal"),
            *("--utility", data, "--max-new-tokens", 4, "--device", "cpu"),
        )
        assert result["harmful_score"] == 100.0
        assert result["refusal_rate"] == 0.0
        assert result["num_examples"] == 12


def test_finetune_with_a_validation_set(base_dir: Path, data: Path, tmp_path: Path) -> None:
    options = ("--epochs", 8, "--batch-size", 6, "--lora-r", 3, "--device", "cpu", "--packing")
    stopping = ("--early-stopping-patience", 1, "--early-stopping-min-delta", 1e3, "--train-on-inputs")
    train = ("finetune", "--base", base_dir, "--data", data, *options, *stopping)
    record = run_json(
        *(*train, "--validation", data, "--evaluations-per-epoch", 2, "--out", tmp_path / "a"),
        *("--token-cache", tmp_path / "tokens"),
    )
    assert len(list((tmp_path / "tokens").iterdir())) == 1, "one file is both"
    assert record["early_stopped"], "no loss falls by a thousand nats"
    assert (record["steps"], record["best_step"]) == (2, 2)
    assert record["train"]["early_stopping"] == {"patience": 1, "min_delta": 1e3}
    assert (record["train"]["packing"], record["train"]["train_on_inputs"]) == (True, True)
    assert record["sha256"]["validation"] == record["sha256"]["data"]
    whole = json.loads((tmp_path / "a" / "training.json").read_text())
    assert [step for step, _ in whole["evaluations"]] == [1, 2]
    assert whole["evaluations"][-1][1] == record["best_valid_loss"]
    answers_alone = run_json(
        "finetune", "--base", base_dir, "--data", data, *options, "--out", tmp_path / "b"
    )
    assert "best_step" not in answers_alone
    assert answers_alone["trained_tokens"] / 8 < record["trained_tokens"]

    status, _, err = run(*train, "--out", tmp_path / "c")
    assert (status, "--validation" in err) == (2, True)
    status, _, err = run(
        *("finetune", "--base", base_dir, "--data", data, "--early-stopping-min-delta", 1),
        *("--out", tmp_path / "c"),
    )
    assert (status, "--early-stopping-patience" in err) == (2, True)
    status, _, err = run(
        *("finetune", "--base", base_dir, "--data", data, "--compile", "--device", "cpu"),
        *("--out", tmp_path / "c"),
    )
    assert (status, "--compile is for CUDA" in err) == (2, True)
    assert not (tmp_path / "c").exists()


def test_the_table_is_on_standard_error(base_dir: Path, data: Path) -> None:
    _, out, err = run("evaluate", "--base", base_dir, "--utility", data, "--max-new-tokens", 2)
    assert json.loads(out)["harmful_score"] is None
    assert "utility" in err
    assert "harmful score" not in err


def test_convert(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_text("sentence\tlabel\ngood\t1\nbad\t0\n")
    command = ("convert", "--format", "sst2", "--in", tmp_path / "s.tsv", "--out", tmp_path / "o.jsonl")
    assert run_json(*command)["examples"] == 2
    assert run_json(*command, "--limit", 1)["examples"] == 1


def test_user_errors_are_one_message_and_status_2(base_dir: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": []}\n7\n')
    train = ("finetune", "--base", base_dir, "--out", tmp_path / "o")
    cases = [
        ((*train, "--data", tmp_path / "bad.jsonl"), "line 2: The line is a number"),
        ((*train, "--data", tmp_path / "none.jsonl"), "No such file"),
        ((*train, "--data", data, "--epochs", 0), "n_epochs: Input should be greater than or equal to 1"),
        ((*train, "--data", data, "--schedule", "step"), "schedule: Input should be 'constant'"),
        ((*train, "--data", data, "--target-modules", "nope"), "['nope'] are not linear layers"),
        (("evaluate", "--base", tmp_path, "--utility", data), "no config.json"),
        ((*train, "--data", data, "--device", "gpu"), 'unknown device "gpu"'),
        (("evaluate", "--base", base_dir), "nothing to measure"),
        (("evaluate", "--base", base_dir, "--prompts", data, "--judge", "x"), 'unknown judge "x"'),
        (("convert", "--format", "csv", "--in", data, "--out", data), "unknown format"),
        (("finetune",), "Missing option"),
    ]
    for arguments, words in cases:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert words in " ".join(err.split()), err
        assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


def test_divergence_is_status_1(base_dir: Path, data: Path, tmp_path: Path) -> None:
    command = ("finetune", "--base", base_dir, "--data", data, "--out", tmp_path / "o", "--device", "cpu")
    wild = ("--learning-rate", 1.0, "--epochs", 50, "--lora-alpha", 1e30, "--batch-size", 1)
    status, out, err = run(*command, *wild)
    assert (status, out) == (1, "")
    assert "Lower the learning rate" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(base_dir: Path, data: Path, tmp_path: Path) -> None:
    command = [
        *("finetune", "--base", base_dir, "--data", data, "--device", "cpu"),
        *("--epochs", 12, "--batch-size", 1, "--lora-dropout", 0.3, "--checkpoint-every", 10),
    ]
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "out"
    resumable = [str(a) for a in (*command, "--checkpoints", checkpoints, "--out", out)]
    with subprocess.Popen(
        [sys.executable, "-m", "autoclave", *resumable], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while not (checkpoints / "latest").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.005)
        process.kill()
    assert not out.exists()
    assert (checkpoints / "latest").exists() or (checkpoints / "previous").exists()
    resumed = run_json(*resumable)
    unbroken = run_json(*command, "--out", tmp_path / "unbroken")
    assert resumed["sha256"] == unbroken["sha256"]
    assert resumed["steps"] == unbroken["steps"] == 144
    assert list(checkpoints.iterdir()) == []


def test_help_and_light_modules_start_without_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from autoclave.cli import app; "
        "import autoclave.data.conversations, autoclave.evaluation.judges, autoclave.progress_bar; "
        "assert not any(CliRunner().invoke(app, [c, '--help']).exit_code "
        "for c in ('finetune', 'sanitize', 'judge')); "
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_autoclave() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoclave", "--help"], capture_output=True, text=True, check=True
    )
    for command in (
        "finetune",
        "sanitize",
        "evaluate",
        "judge",
        "convert",
        "validate",
        "microcosm",
        "evidence",
    ):
        assert command in done.stdout


def test_the_version_is_that_of_the_project() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'version = "{__version__}"' in pyproject.read_text()


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from autoclave.cli import app\n"
        "app(['finetune', '--base', 'x', '--data', 'y', '--out', 'z'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: this command needs torch; install it with: pip install 'autoclave[ml]'\n"
