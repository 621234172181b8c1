"""Pages of lists and lists of words in a query, as the official SDK sends them and reads them."""

import json
import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field

from meterhouse.admin.schemas import Listing
from meterhouse.db.paging import Page, PageQuery
from meterhouse.errors import Malformed

MOST_WORDS = 100
"""Of one list in a query."""

_NUL = re.compile(rb"\\u0000|\0")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_BRACKETS = re.compile(rb"((?:^|&)[^=&]*?)(?:\[\]|%5B%5D)=", re.IGNORECASE)

Text = Annotated[str, Field(max_length=256)]
"""An id or a name to compare with."""

Row = TypeVar("Row")
Shown = TypeVar("Shown", bound=BaseModel)

Words = Annotated[list[str], Query(max_length=MOST_WORDS)]
Cursor = Annotated[str | None, Query(max_length=200, description="The id of an object that was seen")]
PageSize = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query(description="By the time of creation")]


def read_page(after: Cursor = None, before: Cursor = None, limit: PageSize = 20, order: Order = "asc") -> PageQuery:
    """Read which page is asked for, the oldest object first."""
    return PageQuery(limit, after, before, is_newest_first=order == "desc")


OldestFirst = Annotated[PageQuery, Depends(read_page)]


class AdminRoute(APIRoute):
    """Reads ``name[]=a&name[]=b``, which is how the official SDK writes a list, as ``name=a&name=b``.

    And refuses U+0000 wherever it stands, because PostgreSQL has no text with it, and half of a character, because
    UTF-8 has none: what was stored with one could not be shown again.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request; raises Malformed."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            query = request.scope["query_string"]
            body = await request.body()
            if "\0" in request.scope["path"] or b"%00" in query or _NUL.search(body):
                raise Malformed("A text holds the character U+0000, which cannot be stored. Leave it out.")
            if _SURROGATE.search(body) and _has_half_character(body):
                raise Malformed("A text holds half of a surrogate pair, which is no character. Leave it out.")
            request.scope["query_string"] = _BRACKETS.sub(rb"\1=", query)
            return await handle(request)

        return read


def _has_half_character(body: bytes) -> bool:
    """Say whether JSON has a surrogate that is not one of a pair; what is no JSON is for whoever reads it."""
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def listing(page: Page[Row], show: Callable[[Row], Shown]) -> Listing[Shown]:
    """Show a page."""
    data = [show(row) for row in page.rows]
    ids = [str(getattr(item, "id", "")) for item in data]
    return Listing(
        data=data,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
        has_more=page.has_more,
    )
