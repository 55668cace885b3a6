"""All that a child needs to check and measure a base, in one file, and what it may do on the way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

from service.bases.folders import parse_folders
from service.bases.refusals import is_folder
from workers.child import child_environment

HUB_PREFIX = "HF_"
_PROXIES = frozenset(
    case(name)
    for name in ("https_proxy", "http_proxy", "no_proxy", "ssl_cert_file", "requests_ca_bundle")
    for case in (str.lower, str.upper)
)
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class RegistrationOrder(msgspec.Struct, frozen=True, kw_only=True):
    registration_id: str
    fencing_number: int
    name: str
    source: str
    revision: str | None
    profile: dict[str, Any] | None
    profile_file: str | None
    profile_is_ours: bool
    """Of a base that is registered: its files and judges were an operator's choice."""
    spec: dict[str, Any]
    template: str | None
    store: str | None
    alignment_method: str | None
    device: str | None
    registered_sha256: str | None
    base_folders: str
    """BASE_FOLDERS of the worker."""
    scratch: str
    attempt: int
    worker: str
    request_id: str | None

    @property
    def stop_flag(self) -> Path:
        return Path(self.scratch) / "stop"

    @property
    def folders(self) -> tuple[Path, ...]:
        return parse_folders(self.base_folders)


def write_order(order: RegistrationOrder, path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(order)))


def read_order(path: Path) -> RegistrationOrder:
    return msgspec.json.decode(path.read_bytes(), type=RegistrationOrder)


def log_fields(order: RegistrationOrder) -> dict[str, str | int | None]:
    return {
        "registration_id": order.registration_id,
        "attempt": order.attempt,
        "fencing_number": order.fencing_number,
        "worker": order.worker,
        "request_id": order.request_id,
        "process": "child",
    }


def environment_for(order: RegistrationOrder, environment: dict[str, str]) -> dict[str, str]:
    """As that of a job's child, which never asks a hub; only where the base comes from one may it be asked,
    unless the operator said HF_HUB_OFFLINE."""
    if is_folder(order.source):
        return child_environment(environment)
    names = {name for name in environment if name.startswith(HUB_PREFIX)} | _PROXIES | {"XDG_CACHE_HOME"}
    passed = child_environment(environment, frozenset(names))
    for name in _OFFLINE:
        del passed[name]
        if name in environment:
            passed[name] = environment[name]
    return passed
