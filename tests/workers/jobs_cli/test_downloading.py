"""Downloads through connections that break, bytes that are wrong, and archives that are hostile."""

from __future__ import annotations

import hashlib
import io
import json
import socket
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.db import Database
from service.storage import Storage
from tests.builders import Tenant, audit_entries, make_adapter, make_adapter_file, make_job
from tests.workers.jobs_cli.conftest import Terminal, terminal_of
from workers.jobs_cli.downloads import SUMS_FILE, extract
from workers.jobs_cli.errors import DamagedError
from workers.package import archive_files, write_archive

CONTENTS = {"README.md": b"# Card\n", "adapter_model.safetensors": bytes(range(256)) * 4000}


@dataclass(frozen=True)
class Released:
    job_id: str
    tar: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.tar).hexdigest()


@pytest.fixture
def released(database: Database, storage: Storage, tenant: Tenant, tmp_path: Path) -> Released:
    """A real archive, as a worker writes it, and its rows."""
    package = tmp_path / "package"
    package.mkdir()
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in CONTENTS.items())
    for name, content in (CONTENTS | {SUMS_FILE: sums.encode()}).items():
        (package / name).write_bytes(content)
    archive = tmp_path / "adapter.tar"
    write_archive(package, archive)
    tar = archive.read_bytes()
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="succeeded", stage="publish")
        adapter = make_adapter(session, job, bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
        for file in archive_files(archive):
            make_adapter_file(
                session, adapter, name=file.name, bytes=file.num_bytes, sha256=file.sha256, offset=file.offset
            )
        storage.put(adapter.storage_key, tar)
        return Released(job.id, tar)


@contextmanager
def breaking(url: str, num_bytes: int, *, times: int) -> Iterator[str]:
    """The API behind a wire that is cut after so many bytes of an answer, so many times."""
    port = int(url.rsplit(":", 1)[1].removesuffix("/v1"))
    cuts_left = times
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(caller: socket.socket) -> None:
        nonlocal cuts_left
        with caller, socket.create_connection(("127.0.0.1", port)) as server:
            asking = threading.Thread(target=copy, args=(caller, server))
            asking.start()
            sent = 0
            try:
                while data := server.recv(4096):
                    caller.sendall(data)
                    sent += len(data)
                    if sent > num_bytes and cuts_left > 0:
                        cuts_left -= 1
                        break
            except OSError:
                pass
            for end in (caller, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            asking.join()

    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(caller,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for thread in threads:
            thread.join()


def ranges(database: Database) -> list[str | None]:
    """What of the adapter was asked for, in order."""
    with database.snapshot() as session:
        entries = audit_entries(session)
    return [entry.details["range"] for entry in entries if entry.action == "adapter.downloaded"]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_file(terminal: Terminal, released: Released, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "a.tar"
    said = terminal.run("download", released.job_id, "--out", str(out))
    assert (said.stdout, said.stderr) == (f"{released.sha256}  {out}\n", "")
    assert out.read_bytes() == released.tar
    assert left(out.parent) == ["a.tar"]
    assert "--force replaces it" in terminal.refused("download", released.job_id, "--out", str(out))
    out.write_bytes(b"other")
    answer = terminal.json("download", released.job_id, "--out", str(out), "--force")
    assert answer == {"path": str(out), "sha256": released.sha256, "bytes": len(released.tar)}
    assert out.read_bytes() == released.tar


def test_one_file_of_it(terminal: Terminal, released: Released, tmp_path: Path) -> None:
    terminal.run("download", released.job_id, "--file", "README.md", "--out", str(tmp_path / "card"))
    assert (tmp_path / "card").read_bytes() == CONTENTS["README.md"]
    said = terminal.refused("download", released.job_id, "--file", "../x", "--out", str(tmp_path / "x"))
    assert said.count("\n") == 1


def test_the_name_it_gets(
    terminal: Terminal, released: Released, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    terminal.run("download", released.job_id)
    terminal.run("download", released.job_id, "--extract")
    assert left(tmp_path / "here") == [f"{released.job_id}-adapter", f"{released.job_id}-adapter.tar"]


def test_it_goes_on_after_breaks(
    api_url: str, tenant: Tenant, database: Database, released: Released, tmp_path: Path
) -> None:
    out = tmp_path / "a.tar"
    with breaking(api_url, 300_000, times=3) as url:
        said = terminal_of(url, tenant).run("download", released.job_id, "--out", str(out))
    assert out.read_bytes() == released.tar
    assert said.stderr.count("lost the server, trying again") >= 1
    asked = ranges(database)
    assert asked[0] is None
    assert len(asked) == 4
    starts = [int(one.split()[1].split("-")[0]) for one in asked[1:] if one is not None]
    assert starts == sorted(starts)
    assert starts[0] > 250_000, "what came before the break was kept"


def test_another_command_goes_on_where_this_one_stopped(
    api_url: str, terminal: Terminal, tenant: Tenant, database: Database, released: Released, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    out = folder / "a.tar"
    with breaking(api_url, 300_000, times=1) as url:
        broken = ("download", released.job_id, "--out", str(out), "--patience", "0")
        said = terminal_of(url, tenant).refused(*broken, exit_code=4)
    assert said.count("\n") == 1
    [part] = left(folder)
    assert part == f".a.tar.{released.sha256[:16]}.part"
    terminal.run("download", released.job_id, "--out", str(out))
    assert out.read_bytes() == released.tar
    assert left(folder) == ["a.tar"]
    assert [one is None for one in ranges(database)] == [True, False]


def test_damaged_bytes_never_get_the_name(terminal: Terminal, released: Released, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    out = ("--out", str(folder / "a.tar"))
    # The server sends nothing that is damaged at its end; what an earlier command left here may be.
    folder.mkdir()
    (folder / f".a.tar.{released.sha256[:16]}.part").write_bytes(b"wrong")
    said = terminal.refused("download", released.job_id, *out, exit_code=4)
    assert said == f"error: what came is damaged: its SHA-256 is not {released.sha256}; download it again\n"
    assert left(folder) == []
    terminal.run("download", released.job_id, *out)
    assert (folder / "a.tar").read_bytes() == released.tar


def test_extract(terminal: Terminal, released: Released, tmp_path: Path) -> None:
    folder = tmp_path / "x" / "adapter"
    terminal.run("download", released.job_id, "--extract", "--out", str(folder))
    assert {name: (folder / name).read_bytes() for name in CONTENTS} == CONTENTS
    assert left(folder) == sorted([*CONTENTS, SUMS_FILE])
    assert left(folder.parent) == ["adapter"]
    assert "is there already" in terminal.refused(
        "download", released.job_id, "--extract", "--out", str(folder)
    )


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-it", "link"])
def test_an_archive_writes_nothing_outside(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        if name == "link":
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        else:
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DamagedError):
        extract(archive, tmp_path / "folder")
    assert left(tmp_path) == ["evil.tar"]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a": b"1"}, f"holds no {SUMS_FILE}"),
        ({"a": b"1", SUMS_FILE: f"{'0' * 64}  a\n".encode()}, f"a is not what {SUMS_FILE} says"),
        ({SUMS_FILE: f"{'0' * 64}  a\n".encode()}, f"a is not what {SUMS_FILE} says"),
    ],
)
def test_an_archive_with_wrong_sums_leaves_nothing(
    tmp_path: Path, files: dict[str, bytes], words: str
) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(DamagedError, match=words):
        extract(archive, tmp_path / "folder")
    assert left(tmp_path) == ["bad.tar"]


def test_a_job_without_an_adapter(
    terminal: Terminal, database: Database, tenant: Tenant, tmp_path: Path
) -> None:
    with database.transaction() as session:
        job = make_job(session, tenant.project_id, status="failed", error_code="safety_gate_failed")
    said = terminal.refused("download", job.id, "--out", str(tmp_path / "x"))
    assert "has released no adapter: the job failed with safety_gate_failed" in said
    assert not (tmp_path / "x").exists()
    assert json.loads(terminal.out("show", job.id, "--json"))["error"]["code"] == "safety_gate_failed"
