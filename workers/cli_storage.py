"""`autoclave admin create-bucket`: the bucket that STORAGE_URL names."""

from __future__ import annotations

import os

import typer

from autoclave.errors import InputError

storage = typer.Typer()


@storage.command()
def create_bucket() -> None:
    """Make the bucket of STORAGE_URL, and check that it can be used. Harmless when it is there."""
    from service.startup import StartError, open_storage
    from service.storage import S3Storage, StorageUnavailableError, storage_from_url
    from service.storage.s3_admin import create_bucket as create

    url = os.environ.get("STORAGE_URL")
    if url is None:
        raise InputError("set STORAGE_URL (docs/configuration.md)")
    try:
        place = storage_from_url(url)
    except ValueError as error:
        raise StartError(str(error)) from error
    if isinstance(place, S3Storage):
        try:
            created = create(place.place)
        except StorageUnavailableError as error:
            raise StartError(f"STORAGE_URL: cannot make the bucket: {error}") from error
        typer.echo(f"bucket {place.place.bucket}: {'made' if created else 'already there'}", err=True)
    open_storage(url)
