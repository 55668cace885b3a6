"""What `obstore` cannot do to a bucket: make it, and abort uploads that a killed process left unfinished.

By Amazon's own client, which is loaded only where it is needed: it takes 15 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from service.storage.errors import BucketMissingError, StorageRefusedError, StorageUnavailableError
from service.storage.s3_url import S3Place

_ABORT_AFTER_DAYS = 2


def abort_uploads(place: S3Place, *, before: float) -> int:
    """Abort uploads below the prefix that were begun, and got their newest part, before then (seconds since
    the epoch); how many."""
    aborted = 0
    prefix = f"{place.prefix}/" if place.prefix else ""
    with _client(place) as client:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=place.bucket, Prefix=prefix)
        for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
            if upload["Initiated"].timestamp() >= before:
                continue
            which = {"Bucket": place.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
            try:
                if _newest_part_at(client, which) < before:
                    client.abort_multipart_upload(**which)
                    aborted += 1
            except client.exceptions.NoSuchUpload:
                continue  # finished or aborted meanwhile
    return aborted


def _newest_part_at(client: Any, which: dict[str, str]) -> float:
    parts = [
        part
        for page in client.get_paginator("list_parts").paginate(**which)
        for part in page.get("Parts", ())
    ]
    return max((part["LastModified"].timestamp() for part in parts), default=0.0)


def create_bucket(place: S3Place) -> bool:
    """False if it is there already. Also asks the store to abort forgotten uploads by itself, below the
    prefix; not every store can, and the sweep does it anyway."""
    from botocore.exceptions import ClientError

    elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": place.region}}
    with _client(place) as client:
        # Asked first: Amazon takes it well when a bucket is made twice.
        try:
            client.head_bucket(Bucket=place.bucket)
            return False
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
        client.create_bucket(
            Bucket=place.bucket,
            # Amazon refuses to be told of this region, and any other store of a region at all.
            **({} if place.region == "us-east-1" or place.endpoint else elsewhere),
        )
        rule = {
            "ID": "abort-unfinished-uploads",
            "Status": "Enabled",
            "Filter": {"Prefix": f"{place.prefix}/" if place.prefix else ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": _ABORT_AFTER_DAYS},
        }
        with suppress(ClientError):
            client.put_bucket_lifecycle_configuration(
                Bucket=place.bucket, LifecycleConfiguration={"Rules": [rule]}
            )
    return True


@contextmanager
def _client(place: S3Place) -> Iterator[Any]:
    """Its errors become ours, without its words."""
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    config = Config(
        connect_timeout=5,
        read_timeout=place.timeout_seconds,
        retries={"mode": "standard", "total_max_attempts": 3},
        s3={"addressing_style": "path" if place.path_style else "virtual"},
        # Newer checksums than older S3-compatible stores understand are left out.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        client = botocore.session.get_session().create_client(
            "s3",
            region_name=place.region,
            endpoint_url=place.endpoint,
            verify=None if place.ca_file is None else str(place.ca_file),
            config=config,
        )
        try:
            yield client
        finally:
            client.close()
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        code = error.response.get("Error", {}).get("Code", "")
        reason = str(status) if code == str(status) else f"{status} {code}".strip()
        if code == "NoSuchBucket":
            raise BucketMissingError("the bucket does not exist", reason=reason) from None
        if status in (401, 403):
            raise StorageRefusedError("the storage refuses the credentials", reason=reason) from None
        raise StorageUnavailableError(reason=reason) from None
    except BotoCoreError as error:
        raise StorageUnavailableError(reason=type(error).__name__) from None
