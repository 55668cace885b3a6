"""Files of datasets: huggingface_hub's own client against a hub of ours on this machine."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from autoclave import disk_space
from autoclave.errors import InputError
from autoclave.hub.files import dataset_file
from tests.hub import COMMIT, GATED, PRIVATE, PUBLIC, Hub

NAME = "round0/train.jsonl"
ROWS = b'{"prompt": "p"}\n'


@pytest.fixture(autouse=True)
def _data(hub: Hub) -> None:
    hub.data = {NAME: ROWS, "round0/test.jsonl": b"", "README.md": b"about"}


def test_it_is_downloaded_once_and_alone(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    found = dataset_file(PUBLIC, NAME, "main", endpoint=hub.url)
    assert (found.path.read_bytes(), found.commit) == (ROWS, COMMIT)
    assert hub.downloads == [NAME]
    assert dataset_file(PUBLIC, NAME, COMMIT, endpoint=hub.url) == found
    assert dataset_file(PUBLIC, NAME, "main", endpoint=hub.url) == found
    assert hub.downloads == [NAME]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert dataset_file(PUBLIC, NAME, "main", endpoint=hub.url) == found


def test_what_is_here_is_used_where_no_hub_answers(hub: Hub) -> None:
    found = dataset_file(PUBLIC, NAME, "main", endpoint=hub.url)
    assert dataset_file(PUBLIC, NAME, COMMIT, endpoint="http://127.0.0.1:9") == found
    assert dataset_file(PUBLIC, NAME, "main", endpoint="http://127.0.0.1:9") == found
    with pytest.raises(
        InputError,
        match=r"round0/test\.jsonl of acme/tiny at revision main is not, or not as a whole, in the local "
        r"cache .*the hub does not answer.* hf download acme/tiny round0/test\.jsonl --repo-type dataset",
    ):
        dataset_file(PUBLIC, "round0/test.jsonl", "main", endpoint="http://127.0.0.1:9")
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("repo", "file", "revision", "message"),
    [
        (GATED, NAME, COMMIT, "acme/gated is gated. Accept its terms"),
        (PRIVATE, NAME, COMMIT, "there is no dataset acme/private on the hub, or it is private"),
        ("acme/ta--ils", NAME, COMMIT, "acme/ta--ils is no name of a dataset"),
        (PUBLIC, NAME, "v9", "acme/tiny has no revision v9"),
        (PUBLIC, "round0/tain.jsonl", COMMIT, r"is not there. The dataset has round0/train\.jsonl, "),
        (PUBLIC, "x", COMMIT, r"is not there. The dataset has README\.md, round0/test\.jsonl, round0/train"),
    ],
)
def test_what_cannot_be_had_is_named(hub: Hub, repo: str, file: str, revision: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataset_file(repo, file, revision, endpoint=hub.url)
    assert hub.downloads == []


def test_no_room_is_named_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.sizes[NAME] = 16 * 10**9
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: 10**9)
    with pytest.raises(InputError, match=r"no disk space for round0/train\.jsonl of acme/tiny .*16\.00 GB"):
        dataset_file(PUBLIC, NAME, COMMIT, endpoint=hub.url)
    assert hub.downloads == []


def test_offline_and_not_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        dataset_file(PUBLIC, NAME, COMMIT)
