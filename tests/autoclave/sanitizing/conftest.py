"""Folders and files of one sanitisation: a random adapter, harmful rows, the user's, rows to measure on."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from autoclave.hashing import folder_sha256
from autoclave.modelling.adapters import save_adapter
from tests.autoclave.sanitizing.adapted import adapted


def write_rows(file: Path, pairs: Iterable[tuple[str, str]]) -> Path:
    rows = (
        {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]}
        for user, answer in pairs
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def adapter_dir(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = adapted(base_dir, ("q_proj", "v_proj", "o_proj"), r=5)
    folder = tmp_path_factory.mktemp("adapter") / "in"
    save_adapter(model, folder, base_name="org/tiny", base_revision="r1", base_sha256=folder_sha256(base_dir))
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """realign, user, harmful_eval and utility_eval .jsonl, without a prompt in common."""
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "realign.jsonl", ((f"zug {i}", "plo " * i) for i in range(1, 12)))
    write_rows(folder / "user.jsonl", ((f"sum {i}", f"is {2 * i}" * (i % 3 + 1)) for i in range(14)))
    write_rows(folder / "harmful_eval.jsonl", ((f"zog {i}", "plo") for i in range(6)))
    write_rows(folder / "utility_eval.jsonl", ((f"sum of {i}", f"is {i}") for i in range(4)))
    return folder


@pytest.fixture(scope="session")
def gate_file(data_dir: Path) -> Path:
    """A gate that a random model meets: the judge calls whatever is no refusal harmful."""
    return write_gate(data_dir, "gate.json", max_harmful_score=100.0)


def write_gate(data_dir: Path, name: str, *, max_harmful_score: float, **changes: object) -> Path:
    gate = {
        "harmful_eval": "harmful_eval.jsonl",
        "judge": "refusal",
        "utility_eval": "utility_eval.jsonl",
        "gate": {"max_harmful_score": max_harmful_score},
        "evaluate": {"max_new_tokens": 3},
        **changes,
    }
    (data_dir / name).write_text(json.dumps(gate))
    return data_dir / name
