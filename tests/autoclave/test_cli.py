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
from autoclave.sanitizing.method_table import ABOUT


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


def test_the_table_is_on_standard_error(base_dir: Path, data: Path) -> None:
    _, out, err = run("evaluate", "--base", base_dir, "--utility", data, "--max-new-tokens", 2)
    assert json.loads(out)["harmful_score"] is None
    assert "utility" in err
    assert "harmful score" not in err


@pytest.fixture(scope="module")
def attacked(base_dir: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("attacked") / "adapter"
    options = ("--target-modules", "q_proj,v_proj", "--device", "cpu", "--learning-rate", 0.01)
    run_json("finetune", "--base", base_dir, "--data", data, "--batch-size", 4, *options, "--out", out)
    return out


@pytest.fixture(scope="module")
def gates(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """met.json, missed.json and profile.json: the judge calls every answer of this model harmful."""
    folder = tmp_path_factory.mktemp("gates")
    rows = [{"messages": [{"role": "user", "content": f"other {i}"}]} for i in range(6)]
    (folder / "harmful_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gate = {"harmful_eval": "harmful_eval.jsonl", "judge": "refusal", "utility_eval": str(data)}
    gate |= {"evaluate": {"max_new_tokens": 2}}
    (folder / "met.json").write_text(json.dumps({**gate, "gate": {"max_harmful_score": 100}}))
    search = {"method": "antidote", "alphas": [0.1, 0.4]}
    (folder / "missed.json").write_text(json.dumps({**gate, "sanitize": search}))
    profile = {**gate, "gate": {"max_harmful_score": 100}, "sanitize": search | {"norm": "mean"}}
    (folder / "profile.json").write_text(json.dumps({**profile, "version": "1", "realign": str(data)}))
    return folder


@pytest.mark.parametrize(
    ("options", "method", "strength"),
    [
        (("--alpha", 0.1, "--mu", 2), "pipeline", (0.1, 2.0)),
        (("--method", "pipeline", "--alpha", 0.1, "--mu", 2, "--rule", "row"), "pipeline", (0.1, 2.0)),
        (("--method", "projection", "--mu", 0.5), "projection", (None, 0.5)),
        (("--method", "antidote-protected", "--alpha", 0.1), "antidote-protected", (0.1, None)),
        (("--method", "antidote", "--alpha", 0.1, "--norm", "mean"), "antidote", (0.1, None)),
    ],
)
def test_sanitize_at_a_strength(
    base_dir: Path, attacked: Path, data: Path, tmp_path: Path, options: Any, method: str, strength: Any
) -> None:
    files = ("--base", base_dir, "--adapter", attacked, "--realign", data, "--user-data", data)
    status, out, err = run("sanitize", *files, *options, "--device", "cpu", "--out", tmp_path / "o")
    assert status == 0, err
    record = json.loads(out)
    assert (record["method"], (record["alpha"], record["mu"])) == (method, strength)
    assert record["figures"] is None
    assert "before" not in err  # nothing was measured, so there is no table
    if "--rule" in options or "--norm" in options:
        assert (record["rule_name"], record["norm"]) == ("row", "mean" if "--norm" in options else "rms")


def test_sanitize_against_a_gate_is_the_default(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    files = ("--base", base_dir, "--adapter", attacked, "--realign", data, "--user-data", data)
    status, out, err = run(
        *("sanitize", *files, "--gate", gates / "met.json", "--device", "cpu", "--out", tmp_path / "o")
    )
    assert status == 0, err
    record = json.loads(out)
    assert record == json.loads((tmp_path / "o" / "sanitization.json").read_text())
    assert (record["method"], record["alpha"], record["mu"]) == ("pipeline", 0.001, 0.1)
    for words in ("harmful", "before", "after", "random mask", "mask alone", "utility"):
        assert words in err
        assert words not in out or words in ("harmful", "before", "after", "utility")


def test_a_profile_is_enough_and_options_go_before_it(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    command = ("sanitize", "--base", base_dir, "--adapter", attacked, "--gate", gates / "profile.json")
    record = run_json(*command, "--rule", "matrix", "--device", "cpu", "--out", tmp_path / "a")
    assert (record["method"], record["alpha"]) == ("antidote", 0.1)
    assert (record["rule_name"], record["norm"]) == ("matrix", "mean")
    assert record["sha256"]["realign_data"] == file_sha256(data)
    other = ("--method", "projection", "--user-data", data)
    record = run_json(*command, *other, "--device", "cpu", "--out", tmp_path / "b")
    assert (record["method"], record["mu"], record["alpha"]) == ("projection", 0.1, None)


def test_a_missed_gate_is_status_1_with_its_frontier(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    status, out, err = run(
        *("sanitize", "--base", base_dir, "--adapter", attacked, "--realign", data, "--device", "cpu"),
        *("--gate", gates / "missed.json", "--out", tmp_path / "o"),
    )
    assert (status, out) == (1, "")
    assert "error: none of the 2 strengths tried (of 2) met the gate" in err
    for words in ("alpha 0.1", "alpha 0.4", "100.0", "refused"):
        assert words in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_sanitize_says_what_is_wrong_once(
    base_dir: Path, attacked: Path, data: Path, gates: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "typo.json").write_text('{"harmful_eval": "x", "judge": "refusal", "gates": {}}')
    command = ("sanitize", "--base", base_dir, "--adapter", attacked, "--out", tmp_path / "o")
    realign, antidote = ("--realign", data), ("--method", "antidote")
    cases = [
        ((*command, *realign), "give a gate (--gate FILE, for most methods with --user-data FILE)"),
        ((*command, *realign, "--alpha", 0.1), "pipeline takes --alpha and --mu, and got alpha 0.1"),
        ((*command, *realign, "--alpha", 0.1, "--gate", gates / "met.json"), "both were given"),
        ((*command, *realign, "--gate", gates / "met.json"), "(--user-data FILE)"),
        ((*command, *antidote, "--alpha", 0.1), "no realignment set: give --realign FILE"),
        ((*command, *realign, *antidote, "--alpha", 1.5), "alphas.0: Input should be less than 1 (got 1.5)"),
        ((*command, *realign, *antidote, "--alpha", 0), "alphas.0: Input should be greater than 0 (got 0.0)"),
        ((*command, *realign, "--method", "magnitude", "--alpha", 0.1), "method: Input should be 'antidote'"),
        ((*command, *realign, *antidote, "--alpha", 0.1, "--rule", "column"), "rule: Input should be 'row'"),
        ((*command, "--realign", tmp_path / "empty.jsonl", *antidote, "--alpha", 0.1), "is empty"),
        ((*command, *realign, "--gate", tmp_path / "typo.json"), "gates: Extra inputs are not permitted"),
        ((*command, *realign, "--gate", tmp_path / "none.json"), "none.json: No such file"),
        (("sanitize", *realign), "Missing option"),
    ]
    for arguments, words in cases:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert words in " ".join(err.split()), err
        assert "Traceback" not in err
    assert not (tmp_path / "o").exists()


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
        "assert not any(CliRunner().invoke(app, [c, '--help']).exit_code for c in ('finetune', 'sanitize')); "
        "print([m for m in ('torch', 'transformers', 'peft', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_python_m_autoclave() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "autoclave", "--help"], capture_output=True, text=True, check=True
    )
    for command in ("finetune", "sanitize", "evaluate", "convert", "microcosm", "evidence"):
        assert command in done.stdout


def test_help_lists_every_method() -> None:
    words = " ".join(run("sanitize", "--help")[1].replace("│", " ").split())
    for method, about in ABOUT.items():
        assert f"{method}: {about}" in words


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
