"""SHA-256 of files and of model folders, to say exactly which base, adapter or dataset was used."""

from __future__ import annotations

import hashlib
from pathlib import Path

# What decides how a base behaves here (generation_config.json names the tokens that end an answer). Left
# out: README and anything else a download may leave in the folder.
BASE_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
ADAPTER_PATTERNS = ("adapter_config.json", "adapter_model.safetensors")


def file_sha256(path: str | Path) -> str:
    """Lower-case hex digest, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(path: str | Path, patterns: tuple[str, ...] = BASE_PATTERNS) -> str:
    """Digest over the sorted lines `<sha256>  <name>` (the format of sha256sum) of the files directly
    in the folder that match a pattern. Independent of file times and of the order on disk.

    Raises FileNotFoundError if no file matches, because the digest of nothing proves nothing.
    """
    lines = "".join(f"{file_sha256(file)}  {file.name}\n" for file in _files(path, patterns))
    return hashlib.sha256(lines.encode()).hexdigest()


def folder_stamp(path: str | Path, patterns: tuple[str, ...] = BASE_PATTERNS) -> str:
    """Another one as soon as a file of `folder_sha256` is written, replaced, added or gone: from names,
    sizes, times and inodes alone, so it costs nothing. Says nothing across machines; the same content may
    have two. Raises FileNotFoundError if no file matches, OSError for one that cannot be looked at."""
    lines = ""
    for file in _files(path, patterns):
        found = file.stat()
        numbers = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        lines += f"{numbers}  {file.name}\n"
    return hashlib.sha256(lines.encode()).hexdigest()


def _files(path: str | Path, patterns: tuple[str, ...]) -> list[Path]:
    """By name. Raises FileNotFoundError if there is none."""
    files = {file for pattern in patterns for file in Path(path).glob(pattern) if file.is_file()}
    if not files:
        raise FileNotFoundError(f"{path}: none of {', '.join(patterns)} is there")
    return sorted(files, key=lambda file: file.name)
