"""Folders and hubs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from autoclave.errors import InputError
from tests.hub import COMMIT, PUBLIC, Hub
from workers.bases.sources import find_base, folder_source, hub_source


def test_a_folder(model: Path) -> None:
    found = find_base(str(model), None)
    assert (found.folder, found.revision, found.origin) == (model, None, str(model))
    assert find_base(str(model), "7").revision == "7"


@pytest.mark.parametrize(
    ("wanted", "revision", "message"),
    [
        ("/no/such/folder", "1", "is no folder of this machine, and no id"),
        ("./acme/tiny/x", "1", "is no folder of this machine, and no id"),
        ("acme/tiny", None, "pin it with --revision"),
    ],
)
def test_neither_folder_nor_id(wanted: str, revision: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_base(wanted, revision)


def test_a_model_of_a_hub(hub: Hub) -> None:
    found = find_base(PUBLIC, "main", endpoint=hub.url)
    assert (found.folder.name, found.revision, found.origin) == (COMMIT, COMMIT, f"hub:{PUBLIC}@{COMMIT}")
    assert hub_source(PUBLIC, COMMIT, endpoint=hub.url) == found


def test_what_is_certainly_a_folder_or_certainly_of_a_hub(
    model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For registrations: a folder acme/tiny where the worker happens to run means nothing."""
    shutil.copytree(model, tmp_path / "acme" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub_source(PUBLIC, COMMIT)
    assert folder_source(str(model), "7").folder == model
    with pytest.raises(InputError, match="no folder of this machine"):
        folder_source(str(tmp_path / "none"), None)
