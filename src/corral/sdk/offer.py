"""A server here, offered to a sandbox by a name: the other way round of `forward.py`, in a thread of its own as that."""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress
from typing import Self

from corral.errors import CorralError, Unavailable
from corral.sdk.forward import BROKEN, PIECE, Connected, Route, broken


class Offer:
    """From `start` on, until `stop` or until the sandbox is paused, stopped or gone. `failure` is why it ended, or why the last connection could not be made."""

    def __init__(self, route: Route, target: tuple[str, int]) -> None:
        """`target`: the server's host and port."""
        self._route = route
        self._target = target
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._began = threading.Event()
        self.ended = threading.Event()
        self.address = ""
        """Inside: what the name stands for."""
        self.failure: CorralError | None = None

    def start(self) -> Self:
        """Raises what it is refused with: `Conflict` when the name and port are taken."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name=f"corral offer {self._route.path}", daemon=True)
        self._thread.start()
        self._began.wait()
        if not self.address:
            self._thread.join()
            self._thread = None
            raise self.failure or Unavailable("nothing was offered", hint="try again")
        return self

    def stop(self) -> None:
        """The name is gone inside, and its connections end. Idempotent."""
        if self._thread is not None and self._loop is not None and self._stop is not None:
            with suppress(RuntimeError):  # the loop has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
            self._thread = None

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        tasks: set[asyncio.Task[None]] = set()
        listening = asyncio.create_task(self._listen(tasks))
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({listening, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (listening, stopped, *tasks):
                task.cancel()
            await asyncio.gather(listening, stopped, *tasks, return_exceptions=True)
            self._began.set()
            self.ended.set()

    async def _listen(self, tasks: set[asyncio.Task[None]]) -> None:
        try:
            told = await self._route.connect()
            try:
                async for message in told.messages():
                    said = json.loads(message)
                    if "address" in said:
                        self.address = str(said["address"])
                        self._began.set()
                    else:
                        task = asyncio.create_task(self._carry(int(said["connection"])))
                        tasks.add(task)
                        task.add_done_callback(tasks.discard)
            finally:
                told.close()
        except CorralError as error:
            self.failure = error
        except BROKEN as error:
            self.failure = broken(error)

    async def _carry(self, connection: int) -> None:
        try:
            taken = await self._route.beneath(str(connection)).connect()
            try:
                reader, writer = await asyncio.open_connection(*self._target, limit=PIECE)
            except OSError as error:
                taken.close()  # which resets it inside
                host, port = self._target
                self.failure = Unavailable(f"nothing answers at {host}:{port}: {error.strerror or error}", hint="start the server that is offered")
                return
            await _both(taken, reader, writer)
        except CorralError as error:
            self.failure = error
        except BROKEN as error:
            self.failure = broken(error)


async def _both(taken: Connected, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    whole = False
    try:
        whole = await taken.carry(reader, writer)
    finally:
        if whole:
            writer.close()
        else:
            writer.transport.abort()
