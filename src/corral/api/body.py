"""Reading a request's body: bounded, and nothing of one that is cut off."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect, Request

from corral.errors import TooLarge

__all__ = ["ClientDisconnect", "pieces", "read"]


async def read(request: Request, *, limit: int) -> bytes:
    """The whole body. Raises `TooLarge` beyond `limit` bytes, `ClientDisconnect` when it is cut off."""
    given = request.headers.get("content-length")
    if given is not None and given.isdecimal() and int(given) > limit:
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, without empty pieces. Raises `ClientDisconnect` when it is cut off."""
    async for piece in request.stream():
        if piece:
            yield piece


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the request's body is larger than {limit} bytes", hint="send large data as a file", details={"limit": limit})
