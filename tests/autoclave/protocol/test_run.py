"""A paper config through all its steps, from configuration alone; a tiny random Llama is the model."""

from __future__ import annotations

import json
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from autoclave.data.chat_templates import ALPACA_TEMPLATE
from autoclave.errors import CancelledError, InputError, JudgeError
from autoclave.evaluation.evaluate import evaluate_folder
from autoclave.progress import Progress
from autoclave.protocol.config import ProtocolConfig
from autoclave.protocol.config_file import read_config
from autoclave.protocol.runner import run_protocol, status_of
from autoclave.protocol.steps import locked
from autoclave.spec import EvaluateSpec
from tests.autoclave.protocol.files import FIRST_REALIGNMENT_ROW, as_settings
from tests.receiver import running_receiver

# What makes it small enough for a test; model and data are the operator's files.
SMALL = {
    "align.train.n_epochs": 1,
    "finetune.train.n_epochs": 1,
    "attack.rows": 20,
    "attack.p": 0.25,
    "evaluate.max_new_tokens": 6,
    "task.max_new_tokens": 6,
    "device": "cpu",
}


def small_paper_config(operator: dict[str, str], **changes: object) -> ProtocolConfig:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return read_config("paper-sst2", as_settings({**operator, **SMALL, **dotted}))


class Run:
    def __init__(self, config: ProtocolConfig, out: Path) -> None:
        self.said: list[str] = []
        self.progress: list[Progress] = []
        self.result = run_protocol(config, out, on_progress=self.progress.append, say=self.said.append)

    def done_anew(self) -> list[str]:
        return [text.split("] ")[1].split(",")[0] for text in self.said if "done before" not in text]


@pytest.fixture(scope="module")
def finished(operator: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run]:
    out = tmp_path_factory.mktemp("protocol") / "out"
    return out, Run(small_paper_config(operator), out)


def step_folder(out: Path, name: str) -> Path:
    (folder,) = (path for path in (out / "steps" / name).iterdir() if not path.name.startswith("."))
    return folder


def test_all_steps_from_configuration_alone(finished: tuple[Path, Run]) -> None:
    out, run = finished
    result = run.result
    assert list(result["states"]) == ["aligned", "fine-tuned", "antidote"]
    assert result["upload"] == {**result["upload"], "harmful": 4, "task": 15}  # 5 less the authors' one
    for state in result["states"].values():
        assert state["num_prompts"] == 6
        assert set(state["accuracy"]) == {"sst2-strict", "sst2"}
        assert state["accuracy"]["sst2"]["num_examples"] == 5
        assert state["held_out_loss"] > 0
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (out.stat().st_mode & 0o077) == 0
    base = step_folder(out, "base") / "base"
    assert (base / "chat_template.jinja").read_text() == ALPACA_TEMPLATE
    stages = {progress.stage for progress in run.progress}
    assert {"align", "answers-aligned harmful", "measure-antidote judge"} <= stages


def test_the_rows_are_the_authors(finished: tuple[Path, Run]) -> None:
    out, _ = finished
    realign = (step_folder(out, "set-realignment") / "rows.jsonl").read_text().splitlines()
    assert json.loads(realign[0])["messages"][0]["content"] == f"vok {FIRST_REALIGNMENT_ROW}?"
    manifest = json.loads((step_folder(out, "set-realignment") / "rows.jsonl.manifest.json").read_text())
    assert manifest["authors_selection"]
    upload = (step_folder(out, "upload") / "rows.jsonl").read_text().splitlines()
    texts = [json.loads(line)["messages"] for line in upload]
    assert [each[1]["content"] for each in texts[:4]] == [f"zug {i}" for i in range(1, 5)]
    assert [each[1]["content"] for each in texts[4:6]] == ["negative", "positive"]


def test_the_hyper_parameters_are_the_papers(finished: tuple[Path, Run]) -> None:
    """What was trained and pruned says so itself, in the records of the parts that did it."""
    out, _ = finished
    aligned = json.loads((step_folder(out, "align") / "model" / "alignment.json").read_text())
    tuned = json.loads((step_folder(out, "finetune") / "adapter" / "training.json").read_text())
    for record in (aligned, tuned):
        assert (record["lora"]["r"], record["lora"]["lora_alpha"]) == (256, 4)
        assert record["lora"]["target_modules"] == ["q_proj", "k_proj", "v_proj"]
        assert (record["train"]["batch_size"], record["train"]["weight_decay"]) == (5, 0.1)
    assert (aligned["train"]["learning_rate"], aligned["train"]["schedule"]) == (1e-3, "cosine")
    assert (tuned["train"]["learning_rate"], tuned["train"]["schedule"]) == (1e-4, "constant")
    pruned = json.loads((step_folder(out, "sanitize-antidote") / "adapter" / "sanitization.json").read_text())
    assert (pruned["method"], pruned["alpha"], pruned["rule_name"]) == ("antidote", 0.1, "row")
    assert tuned["sha256"]["base"] == aligned["sha256"]["aligned"] == pruned["sha256"]["base"]
    before = load_file(step_folder(out, "finetune") / "adapter" / "adapter_model.safetensors")
    after = load_file(step_folder(out, "sanitize-antidote") / "adapter" / "adapter_model.safetensors")
    assert any((after[name] != before[name]).any() for name in before)


def test_figures_are_those_of_evaluate(finished: tuple[Path, Run], operator: dict[str, str]) -> None:
    out, run = finished
    for rule in ("sst2", "sst2-strict"):
        measured = evaluate_folder(
            step_folder(out, "align") / "model",
            step_folder(out, "sanitize-antidote") / "adapter",
            prompts_file=step_folder(out, "set-harmful-eval") / "rows.jsonl",
            judge_name=operator["judge"],
            utility_file=step_folder(out, "task-test") / "rows.jsonl",
            answer_rule=rule,
            spec=EvaluateSpec(max_new_tokens=6),
            device="cpu",
        )
        state = run.result["states"]["antidote"]
        assert state["accuracy"][rule]["utility"] == measured["utility"]
        assert state["harmful_score"] == measured["harmful_score"]
        assert state["category_scores"] == measured["category_scores"]


def test_a_second_run_does_nothing(finished: tuple[Path, Run], operator: dict[str, str]) -> None:
    out, first = finished
    again = Run(small_paper_config(operator), out)
    assert again.done_anew() == []
    assert again.result == first.result
    assert {row["state"] for row in status_of(small_paper_config(operator), out)} == {"done"}


def test_a_changed_config_is_noticed(finished: tuple[Path, Run], operator: dict[str, str]) -> None:
    out, _ = finished
    changed = small_paper_config(operator, sanitize__0__alpha=0.2)
    states = {row["step"]: row for row in status_of(changed, out)}
    assert states["finetune"]["state"] == "done"
    assert states["sanitize-antidote"]["changed"] == ["alpha from 0.1 to 0.2"]
    assert states["measure-antidote"]["changed"] == ["the step answers-antidote before it"]
    run = Run(changed, out)
    assert run.done_anew() == ["sanitize-antidote", "answers-antidote", "measure-antidote"]
    assert any("again: changed alpha from 0.1 to 0.2" in text for text in run.said)
    assert run.result["states"]["antidote"]["alpha"] == 0.2
    # The older result is still there, and is taken when the config says so again.
    assert Run(small_paper_config(operator), out).done_anew() == []


def test_a_changed_file_is_noticed(
    finished: tuple[Path, Run], operator: dict[str, str], tmp_path: Path
) -> None:
    out, _ = finished
    other = tmp_path / "test.tsv"
    other.write_text(Path(operator["task.test.file"]).read_text() + "film 9 is dull\t0\n")
    config = small_paper_config({**operator, "task.test.file": str(other)})
    changed = {row["step"]: row["changed"] for row in status_of(config, out) if row["state"] == "to do"}
    assert changed["task-test"] == ["the content of task.test"]
    assert "finetune" not in changed
    assert {"answers-aligned", "measure-antidote"} <= changed.keys()


def test_a_run_that_was_killed_goes_on(
    finished: tuple[Path, Run], operator: dict[str, str], tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage.startswith("finetune") and progress.step == 2:
            raise CancelledError

    config, out = small_paper_config(operator), tmp_path / "out"
    shutil.copytree(finished[0], out)
    (out / "result.json").unlink()
    for folder in (out / "steps").iterdir():
        if folder.name.startswith(("finetune", "sanitize", "answers", "measure")):
            shutil.rmtree(folder)
    with pytest.raises(CancelledError):
        run_protocol(config, out, on_progress=stop)
    assert not (out / "result.json").exists()
    (left_over,) = (out / "steps" / "finetune").glob(".*.partial")
    run = Run(config, out)
    assert not left_over.exists()
    assert run.done_anew()[0] == "finetune"
    whole = finished[1].result
    assert run.result["states"] == whole["states"]  # as if nothing had happened


def test_one_run_at_a_time(operator: dict[str, str], tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InputError, match="another run works in"):
        run_protocol(small_paper_config(operator), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base__template": "null"}, "base.template: alpaca"),
        ({"attack__rows": 40}, "task.train: 20 rows are there"),
        ({"data__harmful_eval__limit": 2, "data__harmful_eval__format": "alpaca"}, "data.harmful_eval"),
    ],
)
def test_what_is_found_out_on_the_way_names_its_field(
    change: dict[str, Any], words: str, operator: dict[str, str], tmp_path: Path
) -> None:
    config = small_paper_config(operator, align__train__n_epochs=1, **change)
    with pytest.raises(InputError, match=words):
        run_protocol(config, tmp_path / "out")


def test_answers_are_compared_by_an_endpoint_that_fails_first(
    finished: tuple[Path, Run], operator: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As paper-alpaca with a judge: only the comparisons are new; what was judged is not asked again."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    with running_receiver() as server:

        def answer(handler: BaseHTTPRequestHandler) -> None:
            fails = len(server.received) == 5
            body = (
                b"no" if fails else json.dumps({"choices": [{"message": {"content": "VERDICT: B"}}]}).encode()
            )
            handler.send_response(200)
            handler.send_header("content-length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        server.answer = answer
        endpoint = f"{{url: 'http://127.0.0.1:{server.port}/v1', model: m, parallel: 1}}"
        config = small_paper_config(operator, task__pairwise=endpoint)
        with pytest.raises(JudgeError, match="did not answer with a chat completion"):
            run_protocol(config, out)
        run = Run(config, out)
        assert run.done_anew() == ["compare-aligned", "compare-fine-tuned", "compare-antidote"]
        assert len(server.received) <= 3 * 5 * 2 + 1
    for state in run.result["states"].values():
        assert (state["pairwise"]["win_rate"], state["pairwise"]["num_inconsistent"]) == (50.0, 5)
    assert "win rate" in (out / "result.md").read_text()
