"""A copy of a base's folder that can be registered: its own files only, without forbidden settings, and with
a chat template where one is wanted. No torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from autoclave.data.chat_templates import TEMPLATES
from autoclave.disk_space import refuse_full_disk
from autoclave.errors import InputError, ModelError
from autoclave.modelling.base_files import CONFIG_FILES, base_files, without_forbidden_settings
from autoclave.outputs import output_folder

ALIGNMENT_RECORD = "alignment.json"
COPY_MARK = ".autoclave-copy"
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
_COPY_BYTES = 1 << 24


def copy_base(
    source: Path,
    out: Path,
    *,
    template: str | None = None,
    on_bytes: Callable[[int, int], object] | None = None,
    mark: str | None = None,
) -> list[str]:
    """Writes `out`, complete or not at all, and returns what is different there, in words for the operator.

    `template` is a name of `chat_templates.TEMPLATES` and replaces one that is there. `on_bytes(done, total)`
    is called while files are copied. `mark` says in the copy for whom it was made (`is_copy_for`). Raises
    InputError for an unknown template, a full disk or an `out` that is there already, ModelError for
    configuration that cannot be read.
    """
    if template is not None and template not in TEMPLATES:
        raise InputError(f'unknown chat template "{template}"; known: {", ".join(TEMPLATES)}.')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder; a copy needs a new one.")
    record = source / ALIGNMENT_RECORD
    files = base_files(source) + ([record] if record.is_file() else [])
    if template is not None:
        files = [file for file in files if file.name not in _TEMPLATE_FILES]
    total = sum(file.stat().st_size for file in files)
    refuse_full_disk(out, total, what=f"a copy of {source}")
    changes: list[str] = []
    done = 0
    with output_folder(out) as folder:
        if mark is not None:
            (folder / COPY_MARK).write_text(mark, encoding="utf-8")
        for file in files:
            if file.name in CONFIG_FILES:
                changes += _write_settings(file, folder / file.name, drop_template=template is not None)
                done += file.stat().st_size
            else:
                done = _copy(file, folder / file.name, done, total, on_bytes)
        if template is not None:
            (folder / "chat_template.jinja").write_text(TEMPLATES[template], encoding="utf-8")
            changes.append(f"chat_template.jinja: the {template} template")
    return changes


def is_copy_for(folder: Path, mark: str) -> bool:
    """Whether `copy_base` wrote this folder with that mark; it is complete then, unless it is a partial."""
    file = folder / COPY_MARK
    return file.is_file() and file.read_text(encoding="utf-8") == mark


def delete_broken_copies(out: Path, mark: str) -> int:
    """What earlier attempts at `out` with this mark left when they were killed; how many."""
    broken = [each for each in out.parent.glob(f".{out.name}.partial-*") if is_copy_for(each, mark)]
    for folder in broken:
        shutil.rmtree(folder, ignore_errors=True)
    return len(broken)


def _write_settings(file: Path, target: Path, *, drop_template: bool) -> list[str]:
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    kept = without_forbidden_settings(settings)
    if drop_template and file.name == "tokenizer_config.json" and isinstance(kept, dict):
        kept.pop("chat_template", None)
    if kept == settings:
        shutil.copyfile(file, target)
        return []
    target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    gone = [key for key in settings if key not in kept] or ["nested keys"]
    return [f"{file.name}: without {', '.join(gone)}"]


def _copy(
    file: Path, target: Path, done: int, total: int, on_bytes: Callable[[int, int], object] | None
) -> int:
    with file.open("rb") as source, target.open("wb") as copy:
        while chunk := source.read(_COPY_BYTES):
            copy.write(chunk)
            done += len(chunk)
            if on_bytes is not None:
                on_bytes(done, total)
    return done
