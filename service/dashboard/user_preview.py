"""One file, looked at: its conversations as a base reads them, what of them is trained, what stands out."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.catalog import repository as catalog
from service.dashboard.page_route import UserDep, UserPage
from service.dashboard.permission import may, require
from service.dashboard.rendering import page
from service.datasets import endpoints as datasets
from service.datasets.schemas import PreviewRequest, PreviewRow, ValidateRequest
from service.db import Database
from service.deps import Caller, DatabaseDep, StorageDep
from service.errors import ApiError
from service.files import repository
from service.files.schemas import PURPOSE
from service.files.service import file_not_found

router = APIRouter(route_class=UserPage, include_in_schema=False)

ROWS_PER_PAGE = 5
SHOWN_CHARACTERS = 3000
"""Of one conversation, before it has to be opened."""


@dataclass(frozen=True)
class Piece:
    text: str
    trained: bool


@dataclass(frozen=True)
class ShownRow:
    row: int
    pieces: list[Piece]
    rest: list[Piece]
    """What is shown on demand."""
    num_tokens: int
    num_trained_tokens: int
    truncated: bool


@router.get("/app/files/{file_id}")
async def show_file(
    *,
    request: Request,
    database: DatabaseDep,
    storage: StorageDep,
    caller: UserDep,
    file_id: str,
    model: str = "",
    row: int = 1,
) -> Response:
    require(caller, "GET", "/files/{file_id}")
    context = await to_thread.run_sync(_file, database, caller, file_id, model)
    file, base = context["file"], context["base"]
    row = min(max(row, 1), file.num_examples or 1)
    rows, problem = [], None
    if file.purpose == PURPOSE and base is not None:
        last = min(row + ROWS_PER_PAGE, (file.num_examples or 0) + 1)
        wanted = PreviewRequest(training_file=file.id, model=base, rows=list(range(row, last)) or [1])
        try:
            found = await datasets.preview_dataset(request, wanted, database, storage, caller)
            rows = [_shown(one) for one in found.data]
        except ApiError as error:
            problem = error.message
    return page(
        request,
        "user/file.html.j2",
        **context,
        rows=rows,
        row=row,
        last_row=row + len(rows) - 1,
        earlier=max(1, row - ROWS_PER_PAGE) if row > 1 else None,
        later=row + ROWS_PER_PAGE if rows and row + ROWS_PER_PAGE <= (file.num_examples or 0) else None,
        problem=problem,
        may_create=may(caller, "POST", "/fine_tuning/jobs"),
        purpose=PURPOSE,
    )


@router.get("/app/files/{file_id}/statistics")
async def show_statistics(
    *,
    request: Request,
    database: DatabaseDep,
    storage: StorageDep,
    caller: UserDep,
    file_id: str,
    model: str = "",
    validation: str = "",
) -> Response:
    """Below the conversations, as a fragment: it needs the whole file, so it comes later. Else a page."""
    require(caller, "POST", "/fine_tuning/validate")
    context = await to_thread.run_sync(_file, database, caller, file_id, model)
    wanted = ValidateRequest(
        training_file=context["file"].id, model=context["base"], validation_file=validation or None
    )
    report, problem = None, None
    try:
        report = await datasets.validate_dataset(request, wanted, database, storage, caller)
    except ApiError as error:
        problem = error.message
    template = "statistics" if "hx-request" in request.headers else "statistics_page"
    return page(
        request, f"user/{template}.html.j2", **context, report=report, problem=problem, validation=validation
    )


def _file(database: Database, caller: Caller, file_id: str, model: str) -> dict[str, Any]:
    """Raises ApiError 404."""
    with database.snapshot() as session:
        file = repository.get_file(session, caller.project_id, file_id)
        if file is None:
            raise file_not_found(file_id)
        bases = [base.id for base in catalog.list_bases(session)]
        others, _ = repository.list_files(
            session, caller.project_id, purpose=PURPOSE, after=None, limit=200, ascending=False
        )
    base = model if model in bases else next(iter(bases), None)
    return {
        "file": file,
        "bases": bases,
        "base": base,
        "others": [other for other in others if other.id != file.id],
    }


def _shown(row: PreviewRow) -> ShownRow:
    pieces = pieces_of(row.text, row.trained_spans)
    first, rest = cut_after(pieces, SHOWN_CHARACTERS)
    return ShownRow(row.row, first, rest, row.num_tokens, row.num_trained_tokens, row.truncated)


def pieces_of(text: str, spans: Sequence[tuple[int, int]]) -> list[Piece]:
    """The text in order, without a gap; characters that nobody would see are shown as their pictures."""
    pieces: list[Piece] = []
    at = 0
    for start, end in spans:
        pieces += [Piece(text[at:start], trained=False), Piece(text[start:end], trained=True)]
        at = end
    pieces.append(Piece(text[at:], trained=False))
    return [Piece(visible(piece.text), piece.trained) for piece in pieces if piece.text]


def cut_after(pieces: Sequence[Piece], num_characters: int) -> tuple[list[Piece], list[Piece]]:
    """The first so many characters, and the rest."""
    first: list[Piece] = []
    rest: list[Piece] = []
    left = num_characters
    for piece in pieces:
        if left > 0 and piece.text[:left]:
            first.append(Piece(piece.text[:left], piece.trained))
        if piece.text[max(left, 0) :]:
            rest.append(Piece(piece.text[max(left, 0) :], piece.trained))
        left -= len(piece.text)
    return first, rest


def visible(text: str) -> str:
    """Control characters as their pictures (Unicode block 2400), and what changes the direction or the look
    of text unseen as U+XXXX: a reader must see what a model will read."""
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    code = ord(character)
    if character in "\n\t" or character.isprintable():
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\N{SYMBOL FOR DELETE}"
    if unicodedata.category(character) == "Zs":
        return character
    return f"<U+{code:04X}>"
