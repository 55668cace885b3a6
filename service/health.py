"""Is the process up, and could it serve? Open to anybody, so the answers name parts and nothing more."""

from __future__ import annotations

import structlog
from fastapi import APIRouter, Request
from sqlalchemy import text

from service import schema
from service.db import Database
from service.errors import ApiError
from service.storage import Storage

log: structlog.stdlib.BoundLogger = structlog.get_logger()
router = APIRouter(tags=["health"])


@router.get("/healthz")
def healthz() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz")
def readyz(request: Request) -> dict[str, str]:
    """Raises ApiError 503 with what is wrong in `checks`."""
    database: Database = request.state.database
    storage: Storage = request.state.storage
    checks = {"database": "ok", "schema": "ok", "storage": "ok"}
    try:
        with database.snapshot() as session:
            session.execute(text("SELECT 1"))
        if schema.current_revision(database.engine) != schema.head_revision():
            checks["schema"] = "not migrated"
    except Exception as error:
        log.warning("not_ready", part="database", error=type(error).__name__, exc_info=error)
        checks |= {"database": "does not answer", "schema": "unknown"}
    try:
        storage.probe()
    except Exception as error:
        log.warning("not_ready", part="storage", error=type(error).__name__, exc_info=error)
        checks["storage"] = "not writable"
    wrong = [f"{part} {state}" for part, state in checks.items() if state != "ok"]
    if wrong:
        raise ApiError(503, f"Not ready: {', '.join(wrong)}.", code="not_ready", extra={"checks": checks})
    return {"status": "ready", **checks}
