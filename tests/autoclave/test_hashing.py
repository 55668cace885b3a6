"""Digests of files and folders."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from autoclave.hashing import file_sha256, folder_sha256, folder_stamp


def test_a_folder_is_its_matching_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"w" * 100_000)
    lines = "".join(f"{file_sha256(tmp_path / n)}  {n}\n" for n in ("config.json", "model.safetensors"))
    digest = folder_sha256(tmp_path)
    assert digest == hashlib.sha256(lines.encode()).hexdigest()
    assert file_sha256(tmp_path / "config.json") == hashlib.sha256(b"{}").hexdigest()
    (tmp_path / "README.md").write_text("other")
    assert folder_sha256(tmp_path) == digest


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "x.safetensors", "tokenizer.json", "chat_template.jinja"],
)
def test_every_file_that_decides_counts(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_sha256(tmp_path)
    (tmp_path / name).write_text("changed")
    assert folder_sha256(tmp_path) != before


def test_a_rename_counts(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("w")
    before = folder_sha256(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert folder_sha256(tmp_path) != before


def test_nothing_to_hash(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of config\.json"):
        folder_sha256(tmp_path)


def test_a_stamp_changes_with_every_write(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("{}")
    stamps = [folder_stamp(tmp_path)]
    assert folder_stamp(tmp_path) == stamps[0]
    (tmp_path / "README.md").write_text("other")
    assert folder_stamp(tmp_path) == stamps[0]

    times = file.stat()
    time.sleep(0.02)  # the clock of a file system may tick as rarely as every 10 ms
    file.write_text("[]")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a tool does that keeps times
    stamps.append(folder_stamp(tmp_path))
    (tmp_path / "new").write_text("[]")
    os.utime(tmp_path / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "new").replace(file)
    stamps.append(folder_stamp(tmp_path))
    (tmp_path / "x.safetensors").write_text("w")
    stamps.append(folder_stamp(tmp_path))
    assert len(set(stamps)) == 4
    file.unlink()
    (tmp_path / "x.safetensors").unlink()
    with pytest.raises(FileNotFoundError):
        folder_stamp(tmp_path)
