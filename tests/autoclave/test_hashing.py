"""Digests of files and folders."""

import hashlib
from pathlib import Path

import pytest

from autoclave.hashing import file_sha256, folder_sha256


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
