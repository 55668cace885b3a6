"""Downloads an adapter: goes on where a broken connection stopped, compares the SHA-256, and only then gives
the file its name."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from autoclave.hashing import file_sha256
from workers.jobs_cli.client import Client
from workers.jobs_cli.errors import DamagedError, RefusedError, UnreachableError
from workers.jobs_cli.patience import Patience

CHUNK_BYTES = 1 << 18
SILENCE_SECONDS = 60.0
SUMS_FILE = "SHA256SUMS"

OnBytes = Callable[[int, int], None]
"""Called with the bytes that are here and the bytes there are."""


@dataclass(frozen=True)
class Content:
    """What the server says it will send."""

    sha256: str
    num_bytes: int

    @property
    def etag(self) -> str:
        return f'"{self.sha256}"'


def content_of(client: Client, path: str) -> Content:
    headers = client.head(path)
    try:
        return Content(sha256=headers["x-content-sha256"], num_bytes=int(headers["content-length"]))
    except (KeyError, ValueError) as error:
        raise DamagedError(f"{client.base_url} does not say what it would send") from error


def download(client: Client, path: str, target: Path, patience: Patience, *, on_bytes: OnBytes) -> Content:
    """Writes `target`, replacing what is there, when every byte is here and right.

    What came before a break, also of this command, is kept beside it in `.<name>.<hash>.part`. Raises
    RefusedError, UnreachableError when patience is over, DamagedError if the content is not what was
    announced, OSError if it cannot be written.
    """
    content = content_of(client, path)
    part = target.with_name(f".{target.name}.{content.sha256[:16]}.part")
    while True:
        try:
            _fetch_rest(client, path, part, content, patience=patience, on_bytes=on_bytes)
            break
        except DamagedError:
            raise
        except UnreachableError as error:
            patience.wait(error)
    if file_sha256(part) != content.sha256:
        part.unlink()
        raise DamagedError(f"what came is damaged: its SHA-256 is not {content.sha256}; download it again")
    part.replace(target)
    return content


def _fetch_rest(
    client: Client, path: str, part: Path, content: Content, *, patience: Patience, on_bytes: OnBytes
) -> None:
    with part.open("ab") as file:
        here = file.tell()
        if here > content.num_bytes:
            file.truncate(0)
            here = 0
        on_bytes(here, content.num_bytes)
        if here == content.num_bytes:
            return
        # If-Range: other content would come whole, with 200.
        headers = {"Range": f"bytes={here}-", "If-Range": content.etag} if here else {}
        with client.stream(path, headers=headers, silence_seconds=SILENCE_SECONDS) as response:
            if response.headers.get("etag") != content.etag:
                raise DamagedError("the content has changed while it was downloaded; download it again")
            if here and response.status_code != httpx.codes.PARTIAL_CONTENT:
                file.truncate(0)
                here = 0
            for chunk in response.iter_bytes(CHUNK_BYTES):
                file.write(chunk)
                here += len(chunk)
                patience.answered()
                on_bytes(here, content.num_bytes)
        file.flush()
        os.fsync(file.fileno())


def extract(archive: Path, folder: Path) -> list[str]:
    """Unpacks into a new `folder`, which is there whole or not at all, and compares SHA256SUMS. Returns
    the names.

    Only plain files are taken, by tarfile's filter "data": nothing can be written outside the folder.
    Raises RefusedError if there is such a folder, DamagedError if the archive or a checksum is wrong.
    """
    if folder.exists():
        raise RefusedError(f"{folder} is there already; name another one with --out")
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(scratch, filter="data")
        except tarfile.TarError as error:
            raise DamagedError(f"{archive.name} cannot be unpacked: {error}") from error
        _check_sums(scratch)
        scratch.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return sorted(path.name for path in folder.iterdir())


def _check_sums(folder: Path) -> None:
    try:
        lines = (folder / SUMS_FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DamagedError(f"the archive holds no {SUMS_FILE}") from error
    for line in lines:
        digest, _, name = line.partition("  ")
        path = folder / Path(name).name
        if not path.is_file() or file_sha256(path) != digest:
            raise DamagedError(f"{name} is not what {SUMS_FILE} says")
