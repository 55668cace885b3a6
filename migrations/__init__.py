"""One Alembic tree for SQLite and PostgreSQL. Run by `service.schema` or, while developing, by `alembic`."""
