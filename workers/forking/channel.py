"""What a supervisor and its fork server say to each other: JSON lines on a pair of Unix sockets.

    supervisor -- Request, 3 descriptors --> fork server
    supervisor <-- Started, Ended | Refused -- fork server

One request at a time. The descriptors are those of the messages, the log and the environment of the process
to be forked; the last is a file that this process alone reads, so that what is secret in it never passes
through the server.
"""

from __future__ import annotations

import json
import os
import select
import socket

import msgspec

from workers.child import BaseOf

_MAX_BYTES = 65536
NUM_DESCRIPTORS = 3


class Request(msgspec.Struct, frozen=True, kw_only=True):
    order_path: str
    base_path: str


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started"):
    """The process leads a group of its own by now."""

    pid: int
    base: BaseOf


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    exit_code: int
    """Negative: the number of the signal that ended it."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """Nothing was started, and the server ends."""

    reason: str
    for_good: bool
    """Another server of this worker would refuse, too."""


Reply = Started | Ended | Refused
_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def send_request(control: socket.socket, request: Request, descriptors: list[int]) -> None:
    """Raises OSError if nobody is there any more."""
    assert len(descriptors) == NUM_DESCRIPTORS, descriptors
    line = msgspec.json.encode(request) + b"\n"
    sent = socket.send_fds(control, [line], descriptors)
    control.sendall(line[sent:])


def receive_request(control: socket.socket, timeout_seconds: float) -> tuple[Request, list[int]] | None:
    """None once the supervisor is gone, or if nothing came in time."""
    if not select.select([control], [], [], timeout_seconds)[0]:
        return None
    line, descriptors, _flags, _address = socket.recv_fds(control, _MAX_BYTES, NUM_DESCRIPTORS)
    while line and not line.endswith(b"\n"):
        line += control.recv(_MAX_BYTES)
    return (msgspec.json.decode(line, type=Request), descriptors) if line else None


def send_reply(control: socket.socket, reply: Reply) -> None:
    control.sendall(msgspec.json.encode(reply) + b"\n")


class Replies:
    """What a server has said so far, without waiting for more."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._partial = b""

    def take(self) -> list[Reply]:
        """Those that came since the last call."""
        while True:
            try:
                part = self._control.recv(_MAX_BYTES, socket.MSG_DONTWAIT)
            except (BlockingIOError, ConnectionResetError):
                break
            if not part:
                break
            self._partial += part
        *lines, self._partial = self._partial.split(b"\n")
        return [_replies.decode(line) for line in lines]


def environment_file(environment: dict[str, str]) -> int:
    """A descriptor of a file in memory that has no name; the caller closes it."""
    descriptor = os.memfd_create("environment")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(json.dumps(environment).encode())
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_environment(descriptor: int) -> dict[str, str]:
    """Closes the descriptor."""
    with os.fdopen(descriptor, "rb") as file:
        environment: dict[str, str] = json.load(file)
    return environment
