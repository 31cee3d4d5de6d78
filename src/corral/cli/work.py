"""Commands that last: run with await, ended by signals, with nothing left behind."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def until_signal(work: Callable[[], Coroutine[object, object, int]]) -> int:
    """Run `work`; SIGINT, SIGTERM and SIGHUP cancel it, and its own cleaning up is waited for. Returns its exit code, or 128 + the signal."""
    return asyncio.run(_guarded(work))


async def _guarded(work: Callable[[], Coroutine[object, object, int]]) -> int:
    loop, got = asyncio.get_running_loop(), list[int]()
    task = asyncio.create_task(work())

    def arrived(number: int) -> None:
        if not got:  # a second one finds the first being obeyed
            got.append(number)
            task.cancel()

    for number in SIGNALS:
        loop.add_signal_handler(number, arrived, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        return 128 + got[0]
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
