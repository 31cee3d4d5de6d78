"""The preview process' connection to the server: what it asks, and what it is told. Without a server what is known goes on; what is not waits a while.

process → server   {"q": n, "ask": "box", "sandbox", "people", "wake"} · {"q": n, "ask": "key", "key", "project"} · {"q": n, "ask": "serve", "sandbox", "port", "people"} · {"awake": sandbox, "on": bool} ·
                   {"exposed": "NAME:PORT", "sandbox", "on": bool} · {"hushed": sandbox}
server → process   {"a": n, …} with the relay link of a box beside it, or "paused" · {"op": "config", …} with listeners · {"op": "settings", "sandbox", …} · {"op": "back", "sandbox"} ·
                   {"op": "drop", "sandbox"} · {"op": "hush", "sandbox"} · {"op": "speak", "sandbox"} · {"op": "keys"} · {"op": "stop"}
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from typing import Any

from corral.net.edge_link import Link
from corral.preview.answers import Refusal

PATIENCE = 45.0
"""Seconds a question may take: the server lets programs wait for a sandbox a little less."""
AWAY_PATIENCE = 10.0
"""Seconds for which requests wait for a server that is being started again."""

Answer = tuple[dict[str, Any], list[int]]


class Desk:
    """Where questions are asked. `attach` when a server has come."""

    def __init__(self) -> None:
        self._link: Link | None = None
        self._here = asyncio.Event()
        self._numbers = itertools.count(1)
        self._questions: dict[int, asyncio.Future[Answer]] = {}
        self.on_attach: Callable[[], None] = lambda: None

    def attach(self, link: Link) -> None:
        self._link = link
        self._here.set()
        self.on_attach()

    def detach(self) -> None:
        self._link = None
        self._here.clear()
        lost, self._questions = self._questions, {}
        for question in lost.values():
            if not question.done():
                question.set_exception(ConnectionResetError("the server went away"))

    @property
    def here(self) -> bool:
        """Whether a server is there to be asked just now."""
        return self._here.is_set()

    async def ask(self, **question: Any) -> Answer:
        """Raises `Refusal` when there is no server, or it does not answer."""
        for _ in range(2):
            try:
                async with asyncio.timeout(AWAY_PATIENCE):
                    await self._here.wait()
                async with asyncio.timeout(PATIENCE):
                    return await self._ask(question)
            except ConnectionResetError:
                continue  # the next server may know
            except TimeoutError:
                break
        raise Refusal(503, "unavailable", "Corral's server does not answer", "try again in a moment", retry=2)

    async def _ask(self, question: dict[str, Any]) -> Answer:
        if self._link is None:
            raise ConnectionResetError("the server went away")
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            self._link.send({"q": number, **question})
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                for fd in answer.result()[1]:
                    os.close(fd)  # nobody else knows of them
            raise
        finally:
            self._questions.pop(number, None)

    def answered(self, number: int, answer: dict[str, Any], fds: list[int]) -> bool:
        """Whether somebody waits for it; else its descriptors are the caller's to close."""
        question = self._questions.get(number)
        if question is None or question.done():
            return False
        question.set_result((answer, fds))
        return True

    def tell(self, **message: Any) -> None:
        """Without a server nobody needs to know: a new one is told by `on_attach`."""
        if self._link is not None and self._link.open:
            try:
                self._link.send(message)
            except ConnectionResetError:
                pass
