"""What every process does before it starts: read settings, open database and storage, or say why not.

Shared by the API, workers and the command line; knows no HTTP and no queue.
"""

from __future__ import annotations

import ipaddress
import socket
import time

from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError

from autoclave.errors import InputError
from service import auth, operators, schema
from service.db import Database
from service.settings import Settings
from service.storage import BucketMissingError, Storage, StorageRefusedError, storage_from_url


class StartError(InputError):
    """Something that an operator must put right; the message says what and how."""

    code = "cannot_start"


def settings_from_environment() -> Settings:
    """Raises StartError that names each variable and its problem."""
    try:
        return Settings()
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors())
        raise StartError(f"settings: {'; '.join(problems)} (see docs/configuration.md)") from error


def open_database(database_url: str) -> Database:
    """Raises StartError if it cannot be reached or is not migrated."""
    try:
        database = Database.from_url(database_url)
        schema.require_head(database.engine)
    except ArgumentError as error:
        raise StartError("DATABASE_URL: this is not a URL (sqlite:////path.db or postgresql://..)") from error
    except schema.SchemaError as error:
        raise StartError(str(error)) from error
    except ValueError as error:  # some have its name already, those of the library have not
        raise StartError(f"DATABASE_URL: {str(error).removeprefix('DATABASE_URL: ')}") from error
    except OperationalError as error:
        # The driver's own words, without SQLAlchemy's around them and without the URL's password.
        raise StartError(f"DATABASE_URL: cannot connect: {' '.join(str(error.orig).split())}") from error
    except DBAPIError as error:
        # Such as a file that is no database, or a role that may not read the tables.
        raise StartError(f"DATABASE_URL: cannot be used: {' '.join(str(error.orig).split())}") from error
    return database


def require_no_default_key(database: Database, host: str, *, about_to_make_one: bool = False) -> None:
    """Raises StartError if `host` can be reached from other machines while a key is valid that
    `autoclave up` made by itself (or is about to). There is no other key that nobody asked for: none
    is built in."""
    if is_loopback(host):
        return
    with database.snapshot() as session:
        now = time.time()
        keys = [key.id for key in auth.live_default_keys(session, now=now)]
        keys += [key.id for key in operators.live_default_operator_keys(session, now=now)]
    if keys or about_to_make_one:
        what = (
            f"{' and '.join(keys)}, which `autoclave up` made by itself, can still be used"
            if keys
            else "`autoclave up` would make its first key by itself"
        )
        raise StartError(
            f"not listening on {host}, which other machines may reach: {what}. Start once on 127.0.0.1, make "
            "keys of your own (autoclave admin create-key, create-operator-key), revoke those (autoclave "
            "admin revoke-key), and start again; or give --allow-public"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`. Raises StartError for an unknown name."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartError(f"cannot listen on {host}: {error.strerror or error}") from error
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return all(ipaddress.ip_address(address).is_loopback for address in addresses)


def open_storage(storage_url: str) -> Storage:
    """Raises StartError if it is not supported, or if writing, listing, reading or deleting fails."""
    try:
        storage = storage_from_url(storage_url)
        storage.require_all_rights()
    except ValueError as error:
        raise StartError(str(error)) from error
    except BucketMissingError as error:
        raise StartError(
            "STORAGE_URL: there is no such bucket; correct its name, or: autoclave admin create-bucket"
        ) from error
    except StorageRefusedError as error:
        raise StartError(
            f"STORAGE_URL: {error}; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may "
            "list the bucket and write, read and delete in it"
        ) from error
    except OSError as error:
        raise StartError(f"STORAGE_URL: cannot write to it: {error.strerror or error}") from error
    return storage
