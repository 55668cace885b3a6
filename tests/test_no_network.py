"""The guard in `tests/conftest.py`: a test that leaves the machine fails at once, by name."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.conftest import NetworkForbiddenError


def test_other_machines_are_out_of_reach() -> None:
    with socket.socket() as connection, pytest.raises(NetworkForbiddenError, match=r"192\.0\.2\.1"):
        connection.connect(("192.0.2.1", 80))
    with pytest.raises(NetworkForbiddenError):
        httpx.get("http://192.0.2.1/")


def test_this_machine_is_not() -> None:
    with socket.socket() as listener, socket.socket() as connection:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        connection.connect(listener.getsockname())
