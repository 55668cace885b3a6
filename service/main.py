"""Serve the API: `python -m service.main --host 127.0.0.1 --port 8000`.

Settings come from the environment (docs/configuration.md). What stops it from starting is one line
on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import socket
import sys

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, OperationalError

from service import log, schema
from service.app import create_app
from service.db import Database
from service.settings import Settings
from service.storage import Storage, storage_from_url


class StartError(RuntimeError):
    """Something that an operator must put right; the message says what and how."""


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
    except (ValueError, schema.SchemaError) as error:
        raise StartError(str(error)) from error
    except OperationalError as error:
        # The driver's own words, without SQLAlchemy's around them and without the URL's password.
        raise StartError(f"DATABASE_URL: cannot connect: {' '.join(str(error.orig).split())}") from error
    return database


def open_storage(storage_url: str) -> Storage:
    """Raises StartError if it is not supported or not writable."""
    try:
        storage = storage_from_url(storage_url)
        storage.probe()
    except ValueError as error:
        raise StartError(str(error)) from error
    except OSError as error:
        raise StartError(f"STORAGE_URL: cannot write to it: {error.strerror or error}") from error
    return storage


def listen(host: str, port: int) -> socket.socket:
    """Raises StartError if the address is taken or not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def serve(*, host: str, port: int) -> None:
    settings = settings_from_environment()
    log.configure(json=settings.log_json)
    database = open_database(settings.database_url)
    try:
        app = create_app(settings, database=database, storage=open_storage(settings.storage_url))
        with listen(host, port) as listener:
            config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        database.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m service.main", description="Serve the API.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        serve(host=arguments.host, port=arguments.port)
    except StartError as error:
        print(f"autoclave api: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
