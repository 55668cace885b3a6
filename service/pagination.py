"""Lists a page at a time: after which row, and is there more."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select, tuple_
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
    # Row values and no OR: so both databases start at this place of the index, however deep it lies.
    row, place = tuple_(created_at, id), tuple_(*after)
    return query.where(row > place if ascending else row < place)


def cut(rows: list[T], limit: int) -> tuple[list[T], bool]:
    """A page and `has_more`, from rows that were asked for with `limit + 1`."""
    return rows[:limit], len(rows) > limit
