"""Folders and hubs: huggingface_hub's own client against a hub of ours on this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from autoclave import disk_space
from autoclave.errors import InputError
from autoclave.hashing import folder_sha256
from tests.workers.bases.hub import COMMIT, GATED, PUBLIC, Hub
from workers.bases.sources import find_base


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


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_a_download_is_pinned_and_brings_no_pickles_and_no_code(
    hub: Hub, cache: Path, model: Path, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_base(PUBLIC, revision, endpoint=hub.url)
    assert (found.revision, found.origin) == (COMMIT, f"hub:{PUBLIC}@{COMMIT}")
    assert folder_sha256(found.folder) == folder_sha256(model)
    assert not {"pytorch_model.bin", "modeling_own.py"} & set(hub.downloads)
    assert not (found.folder / "modeling_own.py").exists()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = len(hub.downloads)
    assert find_base(PUBLIC, revision, endpoint=hub.url) == found
    assert len(hub.downloads) == fetched


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        (GATED, COMMIT, "is gated. Accept its terms"),
        ("acme/nothing", COMMIT, "there is no model acme/nothing on the hub, or it is private"),
        (PUBLIC, "v9", "acme/tiny has no revision v9"),
        (PUBLIC, "d" * 40, "acme/tiny has no revision dddd"),
    ],
)
def test_what_the_hub_refuses_is_named(hub: Hub, repo: str, revision: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_base(repo, revision, endpoint=hub.url)


def test_no_room_is_named_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.sizes["model.safetensors"] = 16 * 10**9
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 10**9)
    with pytest.raises(InputError, match=r"no disk space for acme/tiny .*16\.00 GB .* 1\.00 GB are free"):
        find_base(PUBLIC, COMMIT, endpoint=hub.url)
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("gone", "message"),
    [("model.safetensors", "no \\*.safetensors weights"), ("config.json", "no config.json")],
)
def test_a_repository_that_is_no_base(hub: Hub, gone: str, message: str) -> None:
    del hub.files[gone]
    with pytest.raises(InputError, match=message):
        find_base(PUBLIC, COMMIT, endpoint=hub.url)
    assert hub.downloads == []


def test_offline_and_not_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=f"HF_HUB_OFFLINE is set.* hf download acme/tiny --revision {COMMIT}"
    ):
        find_base(PUBLIC, COMMIT)


def test_a_cache_that_others_filled(cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--acme--tiny"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert find_base(PUBLIC, "main").folder == repository / "snapshots" / COMMIT


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="the hub does not answer"):
        find_base(PUBLIC, COMMIT, endpoint="http://127.0.0.1:9")
    huggingface_hub.close_session()
