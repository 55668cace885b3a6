"""Lists a page at a time: after which row, and is there more."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import InstrumentedAttribute

T = TypeVar("T")
Query = TypeVar("Query", bound="Select[*tuple[Any, ...]]")


def after_row(
    query: Query,
    created_at: InstrumentedAttribute[float],
    id: InstrumentedAttribute[str],
    *,
    after: tuple[float, str] | None,
    ascending: bool = False,
) -> Query:
    """Order by (created_at, id) and keep what follows the row with these two values."""
    order = (created_at.asc(), id.asc()) if ascending else (created_at.desc(), id.desc())
    query = query.order_by(*order)
    if after is None:
        return query
    time, row_id = after
    if ascending:
        return query.where(or_(created_at > time, and_(created_at == time, id > row_id)))
    return query.where(or_(created_at < time, and_(created_at == time, id < row_id)))


def cut(rows: list[T], limit: int) -> tuple[list[T], bool]:
    """A page and `has_more`, from rows that were asked for with `limit + 1`."""
    return rows[:limit], len(rows) > limit
