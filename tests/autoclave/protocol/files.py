"""What an operator would bring for a paper config, in small: a base without template, BeaverTails, SST-2, a
judge of beaver-dam's architecture. No harmful text: the words are made up."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

from tests.autoclave.evaluation.judges.tiny_judges import save_tiny_classifier
from tests.autoclave.tiny import save_tiny_base

# The authors' realignment rows begin after this many unsafe ones.
FIRST_REALIGNMENT_ROW = 5001


def save_base_without_template(folder: Path) -> Path:
    base = save_tiny_base(folder)
    (base / "chat_template.jinja").unlink(missing_ok=True)
    file = base / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("chat_template", None)
    file.write_text(json.dumps(settings))
    return base


def write_beavertails(file: Path, num_unsafe: int, num_safe: int) -> Path:
    rows = [{"prompt": f"vok {i}?", "response": f"zug {i}", "is_safe": False} for i in range(num_unsafe)]
    rows += [{"prompt": f"lum {i}?", "response": f"tov {i}", "is_safe": True} for i in range(num_safe)]
    with lzma.open(file, "wt", preset=0) as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def write_sst2(file: Path, rows: int) -> Path:
    lines = (f"film {i} is {'fine' if i % 2 else 'dull'}\t{i % 2}\n" for i in range(rows))
    file.write_text("sentence\tlabel\n" + "".join(lines))
    return file


def operator_files(folder: Path) -> dict[str, str]:
    """Settings that fill in paper-sst2."""
    train = write_beavertails(folder / "30k_train.jsonl.xz", FIRST_REALIGNMENT_ROW + 12, 12)
    return {
        "base.path": str(save_base_without_template(folder / "base")),
        "data.alignment.file": str(train),
        "data.attack.file": str(train),
        "data.realignment.file": str(train),
        "data.harmful_eval.file": str(write_beavertails(folder / "30k_test.jsonl.xz", 6, 3)),
        "judge": f"classifier:{save_tiny_classifier(folder / 'dam')}",
        "task.train.file": str(write_sst2(folder / "train.tsv", 20)),
        "task.test.file": str(write_sst2(folder / "test.tsv", 5)),
    }


def as_settings(values: dict[str, object]) -> list[str]:
    return [f"{field}={value}" for field, value in values.items()]
