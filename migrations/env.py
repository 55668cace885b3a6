"""What Alembic runs: on the connection that `service.schema` hands over, or on DATABASE_URL.

Only online: a migration as an SQL script would not know which database it is for.
"""

import os

from alembic import context
from sqlalchemy import Connection, text

from service.db import engine_from_url
from service.models import Table

# Any number that no other application on the same PostgreSQL database uses.
MIGRATION_LOCK = 0x4175_746F


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Table.metadata,
        # SQLite cannot alter most things in place; PostgreSQL ignores this.
        render_as_batch=True,
        # Our SQLite engine sends real BEGINs, so a migration is all or nothing there too.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Several containers may start "migrate" at once: one migrates, the others find it done.
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()


given: Connection | None = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    engine = engine_from_url(os.environ["DATABASE_URL"])
    with engine.connect() as opened:
        run(opened)
    engine.dispose()
