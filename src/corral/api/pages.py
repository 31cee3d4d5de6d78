"""Cursors of lists that begin with the newest: the creation time and id of the last one shown."""

from __future__ import annotations

import base64
import binascii

from corral.errors import InvalidArgument


def cursor(created_at: float, id: str) -> str:
    return base64.urlsafe_b64encode(f"{created_at!r} {id}".encode()).decode().rstrip("=")


def position(cursor: str | None) -> tuple[float, str] | None:
    """Raises `InvalidArgument` for what is no cursor."""
    if cursor is None:
        return None
    try:
        at, _, id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(" ")
        return float(at), id
    except (binascii.Error, ValueError):
        raise InvalidArgument("cursor: it is none of this server's", hint="pass `next` of the page before, unchanged", details={"field": "cursor"}) from None
