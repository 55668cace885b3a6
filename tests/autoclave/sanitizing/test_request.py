"""What is asked for is checked before anything is loaded, arguments first, then files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from autoclave.errors import DataError, InputError, OverlapError, RealignmentError, UnsupportedAdapterError
from autoclave.sanitizing.sanitize import sanitize_folder
from autoclave.sanitizing.strengths import Strength
from autoclave.spec import SanitizeSpec
from tests.autoclave.sanitizing.conftest import write_gate, write_rows

ANTIDOTE = SanitizeSpec(method="antidote")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strength": None}, "neither was given"),
        ({"gate_file": "gate.json"}, "both were given"),
        ({"strength": Strength(mu=1.0)}, "the method antidote takes --alpha, and got mu 1"),
        ({"strength": Strength(0.1, 1.0)}, "takes --alpha, and got alpha 0.1, mu 1"),
        (
            {"spec": SanitizeSpec(), "user_data": "user.jsonl"},
            "pipeline takes --alpha and --mu, and got alpha 0.1",
        ),
        ({"spec": SanitizeSpec(method="antidote-protected")}, "--user-data FILE"),
        ({"spec": SanitizeSpec(method="projection"), "strength": Strength(mu=1.0)}, "--user-data FILE"),
        ({"device": "gpu"}, "unknown device"),
    ],
)
def test_arguments_are_refused_before_any_file_is_read(changes: dict[str, Any], words: str) -> None:
    nowhere = Path("/nowhere")
    arguments: dict[str, Any] = {"spec": ANTIDOTE, "strength": Strength(0.1)}
    if "gate_file" in changes:
        changes = changes | {"gate_file": nowhere / "gate.json"}
    with pytest.raises(InputError, match=words):
        sanitize_folder(nowhere, nowhere, nowhere / "realign.jsonl", nowhere / "out", **arguments | changes)


def test_bad_files_are_refused_before_the_base_is_looked_at(
    adapter_dir: Path, data_dir: Path, gate_file: Path, tmp_path: Path
) -> None:
    def refused(kind: type[Exception], words: str, **changes: Any) -> None:
        arguments = {
            "base_dir": tmp_path / "no-base",
            "adapter_dir": adapter_dir,
            "realign_file": data_dir / "realign.jsonl",
            "out_dir": tmp_path / "work" / "out",
            "gate_file": gate_file,
            "user_data": data_dir / "user.jsonl",
            "device": "cpu",
        }
        with pytest.raises(kind, match=words):
            sanitize_folder(**arguments | changes)
        assert not (tmp_path / "work").exists()

    empty, few = tmp_path / "empty.jsonl", write_rows(tmp_path / "few.jsonl", [("a", "b")] * 7)
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a", "completion": "b"}\n')
    refused(RealignmentError, "empty", realign_file=empty)
    refused(RealignmentError, "7 examples; at least 8", realign_file=few)
    refused(DataError, "legacy_example", realign_file=broken)
    refused(FileNotFoundError, "gone", realign_file=tmp_path / "gone.jsonl")
    refused(DataError, "empty_file", user_data=empty)
    refused(DataError, "legacy_example", user_data=broken)

    def gate(name: str, **changes: object) -> Path:
        return write_gate(data_dir, name, **{"max_harmful_score": 100.0, **changes})  # type: ignore[arg-type]

    refused(InputError, "not a gate file", gate_file=broken)
    refused(DataError, "legacy_example", gate_file=gate("a.json", harmful_eval=str(broken)))
    refused(InputError, "at least 2", gate_file=gate("b.json", evaluate={"max_prompts": 1}))
    refused(InputError, 'unknown judge "none"', gate_file=gate("c.json", judge="none"))
    refused(FileNotFoundError, "gone", gate_file=gate("d.json", utility_eval=str(tmp_path / "gone.jsonl")))
    refused(OverlapError, "11 prompts are both", gate_file=gate("e.json", harmful_eval="realign.jsonl"))
    bound = gate("f.json", utility_eval=None, gate={"max_utility_loss": 5})
    refused(InputError, "gate.max_utility_loss but names no utility_eval", gate_file=bound)

    dora = tmp_path / "dora"
    shutil.copytree(adapter_dir, dora)
    config = json.loads((dora / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    refused(UnsupportedAdapterError, "DoRA", adapter_dir=dora)
