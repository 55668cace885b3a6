"""A server on loopback that answers as an OpenAI-compatible one does, from a model in this process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]


class StubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, reply: Callable[[str, dict[str, Any]], Reply]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.running = self.most_at_once = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: StubServer

    def do_POST(self) -> None:
        stub = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with stub.lock:
            stub.requests.append(body)
            stub.headers.append({name.lower(): value for name, value in self.headers.items()})
            stub.running += 1
            stub.most_at_once = max(stub.most_at_once, stub.running)
        try:
            status, value = stub.reply(self.path, body)
        finally:
            with stub.lock:
                stub.running -= 1
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        if status == 302:
            self.send_header("location", "http://127.0.0.1:1/")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(reply: Callable[[str, dict[str, Any]], Reply]) -> Iterator[StubServer]:
    server = StubServer(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def choice(text: str, *, tokens: int, reason: str = "stop", chat: bool = False) -> Reply:
    content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return 200, {
        "choices": [{"index": 0, "finish_reason": reason, **content}],
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens},
    }
