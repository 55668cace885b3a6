"""Sessions on SQLite or PostgreSQL. One request, or one worker step, is one transaction.

`Database.transaction()` commits when its block ends and rolls back on an exception; nothing else
in the code base commits but `statements()`, in which each statement does. `Database.snapshot()` is
for reading: it always rolls back. So is `glance()`, in which nothing is locked.

On SQLite every writing transaction takes the write lock when it begins (BEGIN IMMEDIATE): a
transaction that reads first and writes later would otherwise fail with SQLITE_BUSY at the write,
which no busy timeout helps against, because its snapshot is already stale.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from service.db_clock import DatabaseClock

_WRITE_OPTION = "autoclave_write"
# What a busy API keeps open. Connections beyond it are opened and closed for each use.
POOL_SIZE = 16


def engine_from_url(url: str) -> Engine:
    """A synchronous engine. Raises ValueError for any other database than the two supported."""
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        engine = create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_pre_ping=True,
            pool_size=POOL_SIZE,
            hide_parameters=True,
        )
        event.listen(engine, "handle_error", _drop_details)
        return engine
    if backend != "sqlite":
        raise ValueError(
            f"DATABASE_URL: {backend!r} is not supported; use sqlite:////path.db or postgresql://..."
        )
    if parsed.database in (None, "", ":memory:"):
        raise ValueError("DATABASE_URL: SQLite needs a file that API and worker can share, not memory")
    engine = create_engine(parsed, connect_args={"timeout": 30}, pool_size=POOL_SIZE, hide_parameters=True)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _drop_details(context: ExceptionContext) -> None:
    """PostgreSQL quotes the row that it refuses, and errors are logged: tenants' data must not be."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].split("\nDETAIL:")[0], *error.args[1:])


def _configure_sqlite(connection: Any, _entry: ConnectionPoolEntry) -> None:
    # The driver would open transactions by its own rules; "begin" below does it instead.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA busy_timeout = 30000")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(_WRITE_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


class Database:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = engine.execution_options(**{_WRITE_OPTION: True})
        # SQLite's driver would forget how it was configured, and begins without asking anybody.
        self.is_postgresql = engine.dialect.name == "postgresql"
        self._single = (
            engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_postgresql else engine
        )
        # SQLite has no other clock than the machine, which is one.
        self._clock = DatabaseClock(self._read_clock) if self.is_postgresql else None

    @classmethod
    def from_url(cls, url: str) -> Database:
        return cls(engine_from_url(url))

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        # Objects stay readable after the commit: a handler builds its response from them.
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def snapshot(self) -> Iterator[Session]:
        with Session(self.engine, autoflush=False) as session:
            yield session

    @contextmanager
    def glance(self) -> Iterator[Session]:
        """A snapshot for a statement or two that lock nothing: without a transaction around them, which on
        PostgreSQL would be two more round trips than the statement itself."""
        with Session(self._single, autoflush=False) as session:
            yield session

    @contextmanager
    def statements(self) -> Iterator[Session]:
        """PostgreSQL only: each statement is a transaction by itself, committed when it returns."""
        assert self.is_postgresql, "SQLite would roll back"
        with Session(self._single, autoflush=False) as session:
            yield session

    def now(self) -> float:
        """Seconds since the epoch by the database's clock, without asking it each time
        (`service.db_clock`). What several machines compare, such as leases, is counted by it."""
        return time.time() if self._clock is None else self._clock.now()

    def _read_clock(self) -> float:
        with self.glance() as session:
            return float(session.execute(select(func.extract("epoch", func.clock_timestamp()))).scalar_one())

    def close(self) -> None:
        self.engine.dispose()


def lock_name(session: Session, name: str) -> None:
    """Until this transaction ends, any other that locks the same name waits. On SQLite writing
    transactions wait for each other anyway."""
    if session.get_bind().dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)
        session.execute(select(func.pg_advisory_xact_lock(key)))
