"""A model hub on a real socket: one public model and dataset with one commit, one gated (its files are listed
for all, as on the real one), one that is there only for who has a token, and nothing else."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
PUBLIC = "acme/tiny"
GATED = "acme/gated"
PRIVATE = "acme/private"


class Hub:
    """`files` are those of the model PUBLIC, `data` those of the dataset by path; `downloads` the names of
    those whose bytes were asked for, `ranges` which parts of files were."""

    def __init__(self, folder: Path) -> None:
        self.files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        self.data: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}
        self.downloads: list[str] = []
        self.ranges: list[str] = []
        self.cut: dict[str, int] = {}
        """Names of files to how many more answers break off in their middle."""
        self.url = ""


@contextmanager
def running_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            status, headers, body = _respond(
                hub, path, with_body=with_body, has_token="Authorization" in self.headers
            )
            part = self.headers.get("Range")
            if part is not None and status == 200:
                hub.ranges.append(part)
                start = int(part.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            name = path.rpartition("/")[2]
            if with_body and hub.cut.get(name, 0) > 0:
                hub.cut[name] -= 1
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _respond(hub: Hub, path: str, *, with_body: bool, has_token: bool) -> tuple[int, dict[str, str], bytes]:
    is_api = path.startswith("api/")
    is_data = path.removeprefix("api/").startswith("datasets/")
    files = hub.data if is_data else hub.files
    rest = path.removeprefix("api/").removeprefix("models/").removeprefix("datasets/") + "/"
    repo, _, rest = rest.partition("/")
    name, _, rest = rest.partition("/")
    repo = f"{repo}/{name}"
    parts = [part for part in rest.split("/") if part]
    if repo == GATED and not is_api:
        return _refused(403 if has_token else 401, "GatedRepo")
    if repo == PRIVATE and not has_token:
        return _refused(401, "RepoNotFound")
    if repo not in (PUBLIC, GATED, PRIVATE):
        return _refused(404, "RepoNotFound")
    if len(parts) > 1 and parts[1] not in (COMMIT, "main"):
        return _refused(404, "RevisionNotFound")
    if is_api:
        entries = [
            {"type": "file", "path": name, "oid": _oid(body), "size": hub.sizes.get(name, len(body))}
            for name, body in sorted(files.items())
        ]
        whole = {
            "id": repo,
            "sha": COMMIT,
            "siblings": [{"rfilename": e["path"], "size": e["size"]} for e in entries],
        }
        answer = entries if parts[:1] == ["tree"] else whole
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()
    name = "/".join(parts[2:])
    body = files[name]
    if with_body:
        hub.downloads.append(name)
    return 200, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT}, body


def _refused(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": "no", "Content-Type": "application/json"}, b"{}"


def _oid(body: bytes) -> str:
    return hashlib.sha1(body).hexdigest()
