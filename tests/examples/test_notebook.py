"""The notebook: well-formed, without outputs, and its cells run in order against a real service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from autoclave.hashing import file_sha256
from workers.data_dir import DataDir
from workers.embedded import EmbeddedService, free_port

NOTEBOOK = Path(__file__).parents[2] / "examples" / "finetune_and_watch.ipynb"

# What a kernel does: one namespace, cell after cell. Then what a reader would have seen.
KERNEL = """
import json, sys
cells = json.load(open(sys.argv[1], encoding="utf-8"))["cells"]
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"<cell {number}>", "exec"), names)
result = {
    "status": names["job"].status,
    "model": names["job"].fine_tuned_model,
    "losses": names["losses"],
    "validation_losses": names["validation_losses"],
    "messages": names["messages"],
    "report": names["report"],
    "answers": list(names["answers"].items()),
    "folder": str(names["folder"]),
    "plotted": [len(axes.lines) for axes in names["loss_plot"].axes + names["frontier_plot"].axes],
}
with open(sys.argv[2], "w") as file:
    json.dump(result, file)
"""


def cells() -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert notebook["metadata"]["kernelspec"] == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    found: list[dict[str, Any]] = notebook["cells"]
    return found


def test_its_form() -> None:
    """As nbformat 4.5 has it: nbformat itself is not installed here."""
    ids = [cell["id"] for cell in cells()]
    assert len(set(ids)) == len(ids)
    for cell in cells():
        assert cell["metadata"] == {}
        lines = cell["source"]
        assert all(line.endswith("\n") for line in lines[:-1])
        assert not lines[-1].endswith("\n")
        if cell["cell_type"] == "code":
            assert set(cell) == {"cell_type", "id", "metadata", "source", "outputs", "execution_count"}
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            compile("".join(lines), cell["id"], "exec")
        else:
            assert set(cell) == {"cell_type", "id", "metadata", "source"}
            assert cell["cell_type"] == "markdown"


def test_no_key_and_no_path_of_somebody_stands_in_it() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "sk-..." in text
    assert text.count("sk-") == 1
    assert "/home/" not in text
    assert "/root/" not in text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_runs_while_a_terminal_watches(tmp_path: Path) -> None:
    """One real job for both: the cells in order, and `autoclave jobs` beside them."""
    result_file = tmp_path / "result.json"
    service = EmbeddedService(DataDir(tmp_path / "data"), host="127.0.0.1", port=free_port())
    with service, (tmp_path / "notebook.log").open("w+") as log:
        assert service.first_key is not None
        environment = os.environ | {
            "AUTOCLAVE_BASE_URL": f"{service.url}/v1",
            "AUTOCLAVE_API_KEY": service.first_key,
            "MPLBACKEND": "Agg",
            "TMPDIR": str(tmp_path),
        }
        notebook = subprocess.Popen(
            [sys.executable, "-c", KERNEL, str(NOTEBOOK), str(result_file)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            seen = watch_beside(notebook, environment, tmp_path)
            notebook.wait(200)
        finally:
            notebook.kill()
            notebook.wait()
        log.seek(0)
        printed = log.read()
    assert notebook.returncode == 0, printed[-4000:]
    result = json.loads(result_file.read_text())

    assert result["status"] == "succeeded"
    assert result["model"].startswith("ft:autoclave/microcosm-small:")
    assert len(result["losses"]) >= 20
    assert result["losses"][-1][1] < result["losses"][0][1]
    assert result["validation_losses"]
    assert result["messages"][0].startswith("Created fine-tuning job")
    scores = result["report"]["summary"]["harmful_score"]
    assert scores["before"] > scores["after"]
    assert f"{scores['before']:.1f} (" in printed
    assert "   trained: " in printed
    assert "adapter_model.safetensors" in printed
    assert Path(result["folder"]).parent == tmp_path
    (_, task_answer), (_, harmful_answer) = result["answers"]
    assert task_answer.startswith("label is")
    assert harmful_answer
    assert result["plotted"][0] == 2, "training and validation"
    assert result["plotted"][1] > len(result["report"]["frontier"]), "every strength, and the gate"

    # The terminal saw the same job.
    events = [line["event"] for line in seen.watched if "event" in line]
    assert [event["message"] for event in events if event["type"] == "message"] == result["messages"]
    curve = [event["data"] for event in events if event["type"] == "metrics"]
    assert [[point["step"], point["train_loss"]] for point in curve] == result["losses"]
    jobs = [line["job"] for line in seen.watched if "job" in line]
    assert jobs[-1]["fine_tuned_model"] == result["model"]
    assert {"train", "sanitize"} <= {job["stage"] for job in jobs}
    assert any((job["progress"] or {}).get("tokens_per_second") for job in jobs)
    assert seen.report == result["report"]
    assert seen.adapter == {
        path.name: file_sha256(path) for path in (Path(result["folder"]) / "adapter").iterdir()
    }


@dataclass(frozen=True)
class Seen:
    watched: list[dict[str, Any]]
    report: dict[str, Any]
    adapter: dict[str, str]
    """SHA-256 by name."""


def watch_beside(notebook: subprocess.Popen[bytes], environment: dict[str, str], folder: Path) -> Seen:
    """What `autoclave jobs` shows of the notebook's job, from its beginning to its end."""

    def jobs(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "workers.cli", "jobs", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            timeout=400,
            check=True,
        ).stdout.decode()

    while not (listed := jobs("list", "--json")):
        assert notebook.poll() is None, (folder / "notebook.log").read_text()[-4000:]
    job_id = json.loads(listed)["id"]
    watched = [json.loads(line) for line in jobs("watch", job_id, "--json", "--interval", "0.5").splitlines()]
    report = json.loads(jobs("report", job_id, "--json"))
    out = folder / "by-terminal"
    jobs("download", job_id, "--extract", "--out", str(out))
    return Seen(watched, report, {path.name: file_sha256(path) for path in out.iterdir()})
