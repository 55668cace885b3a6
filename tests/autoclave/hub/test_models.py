"""Bases of a hub: huggingface_hub's own client against a hub of ours on this machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from autoclave import disk_space
from autoclave.errors import InputError
from autoclave.hashing import folder_sha256
from autoclave.hub import models
from autoclave.hub.models import model_folder
from tests.hub import COMMIT, GATED, PRIVATE, PUBLIC, Hub


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_a_download_is_pinned_and_brings_no_pickles_and_no_code(
    hub: Hub, cache: Path, model: Path, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = model_folder(PUBLIC, revision, endpoint=hub.url)
    assert found.name == COMMIT
    assert folder_sha256(found) == folder_sha256(model)
    assert not {"pytorch_model.bin", "modeling_own.py"} & set(hub.downloads)
    assert not (found / "modeling_own.py").exists()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fetched = len(hub.downloads)
    assert model_folder(PUBLIC, revision, endpoint=hub.url) == found
    assert len(hub.downloads) == fetched


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        (GATED, COMMIT, "is gated. Accept its terms"),
        (PRIVATE, COMMIT, "there is no model acme/private on the hub, or it is private: then HF_TOKEN"),
        ("acme/nothing", COMMIT, "there is no model acme/nothing on the hub, or it is private"),
        (PUBLIC, "v9", "acme/tiny has no revision v9"),
        (PUBLIC, "d" * 40, "acme/tiny has no revision dddd"),
    ],
)
def test_what_the_hub_refuses_is_named(hub: Hub, repo: str, revision: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_folder(repo, revision, endpoint=hub.url)


def test_no_room_is_named_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.sizes["model.safetensors"] = 16 * 10**9
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 10**9)
    with pytest.raises(InputError, match=r"no disk space for acme/tiny .*16\.00 GB .* 1\.00 GB are free"):
        model_folder(PUBLIC, COMMIT, endpoint=hub.url)
    assert hub.downloads == []


@pytest.mark.parametrize(
    ("gone", "message"),
    [("model.safetensors", "no \\*.safetensors weights"), ("config.json", "no config.json")],
)
def test_a_repository_that_is_no_base(hub: Hub, gone: str, message: str) -> None:
    del hub.files[gone]
    with pytest.raises(InputError, match=message):
        model_folder(PUBLIC, COMMIT, endpoint=hub.url)
    assert hub.downloads == []


def test_offline_and_not_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=f"HF_HUB_OFFLINE is set.* hf download acme/tiny --revision {COMMIT}"
    ):
        model_folder(PUBLIC, COMMIT)


def test_a_cache_that_others_filled(cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = cache / "models--acme--tiny"
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    assert model_folder(PUBLIC, "main") == repository / "snapshots" / COMMIT


def test_a_hub_that_does_not_answer(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match="the hub does not answer"):
        model_folder(PUBLIC, COMMIT, endpoint="http://127.0.0.1:9")
    huggingface_hub.close_session()


def test_a_token_opens_what_is_private_and_not_what_is_gated(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_operator")
    assert model_folder(PRIVATE, COMMIT, endpoint=hub.url).name == COMMIT
    with pytest.raises(InputError, match="is gated"):
        model_folder(GATED, COMMIT, endpoint=hub.url)


def test_a_connection_that_breaks_is_resumed_in_the_middle_of_the_file(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut["model.safetensors"] = 1
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr(models, "_WATCH_SECONDS", 0.02)
    found = model_folder(PUBLIC, COMMIT, endpoint=hub.url, on_bytes=lambda *pair: told.append(pair))
    assert folder_sha256(found) == folder_sha256(model)
    half = len(hub.files["model.safetensors"]) // 2
    assert hub.ranges == [f"bytes={half - half % 1024}-"]
    total = sum(len(hub.files[file.name]) for file in found.iterdir())
    assert {of for _, of in told} == {total}
    assert sorted(told) == told, "what has come never gets less"
    assert any(0 < done < total for done, _ in told)


def test_a_download_that_broke_for_good_goes_on_with_the_files_that_are_missing(
    hub: Hub, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.cut["model.safetensors"] = 100
    # The client's own pauses and patience.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.file_download.http_get", _impatient())
    with pytest.raises(InputError, match=r"could not be downloaded.*try again to fetch the others"):
        model_folder(PUBLIC, COMMIT, endpoint=hub.url)
    killed = cache / "models--acme--tiny" / "blobs" / "abc.0123.incomplete"
    killed.write_bytes(b"of a process that was killed an hour ago")
    os.utime(killed, (1.0, 1.0))
    hub.cut.clear()
    hub.downloads.clear()
    # Files are fetched side by side: how many were complete when one failed is a matter of chance.
    complete = {file.name for file in cache.glob(f"models--acme--tiny/snapshots/{COMMIT}/*")}
    found = model_folder(PUBLIC, COMMIT, endpoint=hub.url)
    assert sorted(hub.downloads) == sorted({file.name for file in found.iterdir()} - complete)
    assert "model.safetensors" in hub.downloads
    assert folder_sha256(found) == folder_sha256(model)
    assert not killed.exists()


def _impatient() -> Any:
    from huggingface_hub import file_download

    patient = file_download.http_get

    def get(*arguments: Any, **keywords: Any) -> None:
        keywords["_nb_retries"] = 0
        patient(*arguments, **keywords)

    return get
