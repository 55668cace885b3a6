"""Buckets, prefixes, and what the URL and the environment say of them."""

from __future__ import annotations

import re

import pytest

from service.storage import (
    BucketMissingError,
    storage_from_url,
)
from service.storage.s3_url import s3_place
from tests import s3
from tests.service.test_storage_s3 import whole


def test_a_bucket_that_is_gone_is_no_missing_object(s3_endpoint: str, s3_credentials: None) -> None:
    storage = storage_from_url(f"s3://no-such-bucket?endpoint={s3_endpoint}")
    for deed in (lambda: storage.stream("files/a"), lambda: storage.delete("files/a"), storage.probe):
        with pytest.raises(BucketMissingError):
            deed()


def test_two_prefixes_of_a_bucket_see_nothing_of_each_other(s3_endpoint: str, s3_credentials: None) -> None:
    bucket = s3.new_bucket(s3_endpoint)
    one, two = (storage_from_url(f"s3://{bucket}/{p}/?endpoint={s3_endpoint}") for p in ("one", "one-two"))
    one.put("files/a", b"1")
    two.put("files/a", b"2")
    assert (one.keys(""), whole(one, "files/a"), whole(two, "files/a")) == (["files/a"], b"1", b"2")


def test_what_the_url_and_the_environment_say() -> None:
    place = s3_place("s3://bucket", {})
    assert (place.endpoint, place.region, place.path_style, place.prefix) == (None, "us-east-1", False, "")
    environment = {"AWS_ENDPOINT_URL": "https://a.example/", "AWS_DEFAULT_REGION": "eu-west-1"}
    place = s3_place("s3://bucket/a/b/", environment)
    assert (place.endpoint, place.region) == ("https://a.example", "eu-west-1")
    assert (place.path_style, place.prefix) == (True, "a/b")
    place = s3_place("s3://bucket/?endpoint=https://b.example&region=x&path_style=false", environment)
    assert (place.endpoint, place.region, place.path_style) == ("https://b.example", "x", False)
    place = s3_place("s3://bucket?timeout_seconds=2&retry_seconds=7.5", {})
    assert (place.timeout_seconds, place.retry_seconds) == (2.0, 7.5)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no valid bucket"),
        ("s3://x", "no valid bucket"),
        ("s3://Bucket_1", "no valid bucket"),
        ("s3://key:hunter2@bucket/x", "holds credentials"),
        ("s3://bucket/a/../b", "prefix with other characters"),
        ("s3://bucket/a b", "prefix with other characters"),
        ("s3://bucket?endpoint=ftp://x", "endpoint"),
        ("s3://bucket?endpoint=http://key:hunter2@x", "endpoint"),
        ("s3://bucket?secret=hunter2", "option that does not exist"),
        ("s3://bucket?region=a&region=b", "one twice"),
        ("s3://bucket?region", "name=value"),
        ("s3://bucket?timeout_seconds=0", "timeout_seconds"),
        ("s3://bucket?retry_seconds=soon", "retry_seconds"),
        ("s3://bucket?path_style=yes", "path_style"),
        ("s3://bucket?ca_file=/nowhere", "ca_file"),
        ("s4://key:hunter2@bucket", "not supported"),
    ],
)
def test_urls_that_mean_nothing_are_refused(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        storage_from_url(url)
    assert str(raised.value).startswith("STORAGE_URL")
    assert "hunter2" not in str(raised.value)
