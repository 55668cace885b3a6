"""The package lm-eval itself, on tasks whose data are files here. Where it is not installed, which is so with
the dev extra (it takes 700 MB with all it needs), these are skipped."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from autoclave.cli import app
from autoclave.evaluation.generate import generate_answers
from autoclave.modelling.adapters import adapter_state, attach, save_adapter
from autoclave.modelling.bases import load_base
from autoclave.spec import LoraSpec
from tests.autoclave.tiny import save_tiny_base

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
    pytest.mark.filterwarnings("default"),  # those of the package and of what it needs
]

ROWS = [f"what is {i} plus {i}?" for i in range(6)]
TASK = """
task: {name}
output_type: {kind}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
  cache_dir: {cache}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
SAID = """
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<|end|>"], do_sample: false, max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
doc_to_target: 0
doc_to_choice: ["left", "right"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_adapter(base_dir: Path, folder: Path) -> Path:
    base = load_base(base_dir)
    model = attach(base.model, LoraSpec(r=4, target_modules="all-linear"), seed=0)
    for tensor in adapter_state(model).values():
        tensor.normal_(std=0.2)
    save_adapter(model, folder, base_name="b", base_revision=None, base_sha256=base.sha256)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an adapter, and tasks: of `said` the base's own answers are right, with two exceptions."""
    folder = tmp_path_factory.mktemp("lm-eval")
    base = load_base(save_tiny_base(folder / "base", seed=3))
    write_adapter(folder / "base", folder / "adapter")
    prompts: list[Any] = [[{"role": "user", "content": question}] for question in ROWS]
    given = generate_answers(base.model, base.tokenizer, prompts, max_new_tokens=6)
    given[0] = given[1] = "something else"
    rows = [{"question": q, "answer": a} for q, a in zip(ROWS, given, strict=True)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "tasks").mkdir()
    for name, kind, rest in (("said", "generate_until", SAID), ("choice", "multiple_choice", CHOICE)):
        task = TASK.format(name=name, kind=kind, rows=folder / "rows.jsonl", cache=folder / "cache")
        (folder / "tasks" / f"{name}.yaml").write_text(task + rest)
    lost = TASK.format(name="lost", kind="multiple_choice", rows=folder / "none", cache=folder / "cache")
    (folder / "tasks" / "lost.yaml").write_text(lost + CHOICE)
    return folder


def call(folder: Path, tasks: str, *arguments: str) -> Any:
    common = ["--base", str(folder / "base"), "--include-path", str(folder / "tasks"), "--device", "cpu"]
    return CliRunner().invoke(app, ["task", "lm-eval", "--tasks", tasks, *common, *arguments])


def measured(folder: Path, *arguments: str) -> dict[str, Any]:
    result = call(folder, "said,choice", *arguments)
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)["tasks"]
    return found


def test_it_asks_our_model_in_its_own_template(folder: Path) -> None:
    tasks = measured(folder, "--chat-template")
    assert set(tasks) == {"said", "choice"}
    assert {name: set(task["metrics"]) for name, task in tasks.items()} == {
        "said": {"exact_match"},
        "choice": {"acc"},
    }
    assert tasks["said"]["metrics"]["exact_match"]["value"] == pytest.approx(4 / 6)
    assert tasks["said"]["metrics"]["exact_match"]["stderr"] > 0
    assert tasks["said"]["num_samples"] == 6
    with_adapter = measured(folder, "--chat-template", "--adapter", str(folder / "adapter"), "--limit", "4")
    assert with_adapter["said"]["metrics"]["exact_match"]["value"] == 0, "another model"
    assert with_adapter["said"]["num_samples"] == 4


def test_what_it_refuses_is_said_in_a_line(folder: Path) -> None:
    unknown, lost = call(folder, "no_such_task"), call(folder, "lost")
    assert (unknown.exit_code, lost.exit_code) == (2, 2)
    assert "lm-eval refuses the tasks no_such_task" in unknown.stderr
    assert "lm-eval cannot get at the data of lost" in lost.stderr
