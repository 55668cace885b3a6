"""Serve the API: `python -m service.main --host 127.0.0.1 --port 8000`.

Settings come from the environment (docs/configuration.md). What stops it from starting is one line
on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import argparse
import sys

import uvicorn
from pydantic import ValidationError
from sqlalchemy.exc import ArgumentError, OperationalError

from service import log, schema
from service.app import create_app
from service.db import Database
from service.settings import Settings
from service.storage import storage_from_url


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
    except (ValueError, ArgumentError, schema.SchemaError) as error:
        raise StartError(str(error)) from error
    except OperationalError as error:
        # The driver's own words, without SQLAlchemy's around them and without the URL's password.
        raise StartError(f"DATABASE_URL: cannot connect: {str(error.orig).strip()}") from error
    return database


def serve(*, host: str, port: int) -> None:
    settings = settings_from_environment()
    log.configure(json=settings.log_json)
    database = open_database(settings.database_url)
    try:
        try:
            storage = storage_from_url(settings.storage_url)
        except (ValueError, OSError) as error:
            raise StartError(f"STORAGE_URL: {error}") from error
        app = create_app(settings, database=database, storage=storage)
        uvicorn.run(app, host=host, port=port, log_config=None, access_log=False, server_header=False)
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
