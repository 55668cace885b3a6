"""`/dashboard`: what happens now. Every operator sees the same, so it is made once a second for all."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from functools import partial
from typing import Annotated
from weakref import WeakKeyDictionary

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from markupsafe import Markup
from sqlalchemy import Engine
from starlette.responses import Response

from service.dashboard.operator_words import WORDS
from service.dashboard.page_route import OperatorPage
from service.dashboard.queries import now
from service.dashboard.remembered import Remembered
from service.dashboard.rendering import UNCHANGED, environment, page
from service.db import Database
from service.deps import DatabaseDep

router = APIRouter(route_class=OperatorPage, include_in_schema=False)

BOARD_SECONDS = 1.0


@dataclass(frozen=True)
class Board:
    html: Markup
    """Escaped by its template. Holds nothing of the one who looks: no token, no name."""
    version: str


_boards: WeakKeyDictionary[Database, Remembered[Board]] = WeakKeyDictionary()
_lock = threading.Lock()


@router.get("/dashboard")
def show_now(request: Request, database: DatabaseDep) -> Response:
    return page(request, "operator/now.html.j2", board=_board_of(database).renew())


# Asynchronous: mostly there is nothing to wait for, and hundreds of open pages would each take a thread.
@router.get("/dashboard/live")
async def show_board(
    request: Request, database: DatabaseDep, seen: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    remembered = _board_of(database)
    board = remembered.fresh()
    if board is None:
        board = await to_thread.run_sync(remembered.get)
    if seen == board.version:
        return UNCHANGED
    return page(request, "operator/now_live.html.j2", board=board)


def _board_of(database: Database) -> Remembered[Board]:
    with _lock:
        board = _boards.get(database)
        if board is None:
            board = _boards[database] = Remembered(partial(_made, database.engine), seconds=BOARD_SECONDS)
        return board


def _made(engine: Engine) -> Board:
    shown = now.look(Database(engine))
    html = (
        environment()
        .get_template("operator/now_board.html.j2")
        .render(now=shown, live=now.LIVE, stage_names=now.STAGE_NAMES, **WORDS)
    )
    # Escaped when it was rendered.
    return Board(Markup(html), hashlib.sha256(html.encode()).hexdigest()[:16])  # noqa: S704
