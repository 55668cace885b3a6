"""`autoclave admin create-bucket`."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from service.storage import storage_from_url
from service.storage.s3_url import s3_place
from tests import s3
from tests.s3 import Fault, FaultyS3
from workers.cli import app


def create(url: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setenv("STORAGE_URL", url)
    result = CliRunner().invoke(app, ["admin", "create-bucket"])
    return result.exit_code, str(result.exception) if result.stderr == "" else result.stderr


def test_it_makes_the_bucket_and_tries_it(
    s3_endpoint: str, s3_credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://made-by-the-command/below?endpoint={s3_endpoint}"
    assert create(url, monkeypatch) == (0, "bucket made-by-the-command: made\n")
    assert create(url, monkeypatch) == (0, "bucket made-by-the-command: already there\n")
    storage = storage_from_url(url)
    storage.put("files/a", b"x")
    assert storage.keys("") == ["files/a"]
    with s3.s3_client(s3_endpoint) as client:
        place = s3_place(url)
        (rule,) = client.get_bucket_lifecycle_configuration(Bucket=place.bucket)["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 2}
    assert (rule["Filter"], rule["Status"]) == ({"Prefix": "below/"}, "Enabled")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(403, "InvalidAccessKeyId"), "refuses the credentials (403"),
        (Fault(503, "SlowDown"), "does not answer (503"),
    ],
)
def test_why_it_cannot(
    faulty_s3: FaultyS3, s3_credentials: None, monkeypatch: pytest.MonkeyPatch, fault: Fault, words: str
) -> None:
    faulty_s3.fail(fault)
    code, said = create(f"s3://never-made?endpoint={faulty_s3.url}", monkeypatch)
    assert code != 0
    assert "STORAGE_URL: cannot make the bucket" in said
    assert words in said
    assert s3.SECRET_KEY not in said


def test_a_folder_needs_none(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert create(storage_url, monkeypatch)[0] == 0
    code, said = create("s3://x", monkeypatch)
    assert code != 0
    assert "no valid bucket" in said
