"""Blocking work beside the event loop, and whatever else its caller can't leave in its midst."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(do: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """`asyncio.to_thread` that does not leave the thread alone: a caller who is cancelled waits for its end, so that what it uses can be closed then."""
    return await whole(asyncio.to_thread(do, *arguments, **named))


async def whole(doing: Awaitable[T]) -> T:
    """Its result. A caller who is cancelled waits for its end, which it comes to all the same."""
    work = asyncio.ensure_future(doing)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at: nobody is left whom it would tell anything
        raise
