"""Paging by moment and id: a page begins behind the last row of the one before, however many rows came meanwhile."""

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, or_

from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import is_storable


def cursor_of(at: datetime, row_id: str) -> str:
    """Where the page behind a row begins."""
    return f"{at.isoformat()}~{row_id}"


def behind(cursor: str, at: Any, row_id: Any, *, newest_first: bool = True) -> ColumnElement[bool]:
    """The rows behind a cursor, in the order of these columns. Raises InvalidRequest for a cursor that is none."""
    moment, _, last_id = cursor.partition("~")
    try:
        place = datetime.fromisoformat(moment)
    except ValueError:
        place = None
    if place is None or place.tzinfo is None or not is_storable(last_id):
        raise InvalidRequest.fields({"cursor": ["is not one that this list gave."]})
    if newest_first:
        return or_(at < place, and_(at == place, row_id < last_id))
    return or_(at > place, and_(at == place, row_id > last_id))
