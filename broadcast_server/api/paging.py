"""Pages by cursor: `?cursor=&limit=` in, `{"items": […], "next": str | null}` out.

A cursor is the sort key of the last item seen, so rows that come and go between two requests neither repeat nor hide
others. It is opaque to callers; what is not one of ours is refused. A route fetches `paging.fetch` rows after
`paging.after` and hands them to `paging.page`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from fastapi import Depends, Query
from pydantic import BaseModel, Field

from broadcast_server.domain.errors import Invalid

R = TypeVar("R")
T = TypeVar("T")

DEFAULT_LIMIT = 50
MAX_LIMIT = 200


class Page(BaseModel, Generic[T]):
    """One page of a list."""

    items: list[T]
    next: str | None = Field(description="Cursor of the next page; null on the last one")


@dataclass(frozen=True, slots=True)
class Paging:
    """What page is asked for."""

    after: str | None
    """Sort key of the last item of the page before, as text; None: from the beginning."""
    limit: int

    @property
    def fetch(self) -> int:
        """How many rows to fetch: one more than is shown, which tells whether there is a next page."""
        return self.limit + 1

    def page(self, rows: Sequence[R], *, key: Callable[[R], str], item: Callable[[R], T]) -> Page[T]:
        """The page of `rows` (at most `fetch` of them, in order of `key`), each shown by `item`."""
        shown = rows[: self.limit]
        has_more = len(rows) > self.limit
        return Page(items=[item(row) for row in shown], next=encode(key(shown[-1])) if has_more else None)


def encode(key: str) -> str:
    """The opaque form of a sort key."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def decode(cursor: str) -> str:
    """The sort key of a cursor. Raises `Invalid("cursor_invalid")`."""
    try:
        key = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError, ValueError):
        key = ""
    if not key or "\0" in key or encode(key) != cursor:
        raise Invalid("cursor_invalid", field="cursor", fix="use_next_of_last_page")
    return key


async def _paging(
    cursor: Annotated[str | None, Query(max_length=1_000, description="`next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = DEFAULT_LIMIT,
) -> Paging:
    return Paging(after=None if cursor is None else decode(cursor), limit=limit)


PagingDep = Annotated[Paging, Depends(_paging)]
