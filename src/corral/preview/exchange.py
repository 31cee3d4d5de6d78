"""One request and its answer, between a client and whoever answers; and what follows when both go over to another protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from corral.preview import framing
from corral.preview import head as heads
from corral.preview.answers import Refusal
from corral.preview.duplex import Broken, Duplex, Inlet
from corral.preview.head import BadHead, Request, Response

ANSWER_SECONDS = 300.0
"""How long a server may take to begin its answer."""
STALL_SECONDS = 120.0
"""How long a side may take no bytes of a body before the exchange is given up."""


class Truncated(Exception):
    """The answer has begun and can't be finished: all that is left is to hang up, so that the client notices."""


class Encode(Protocol):
    """Makes the head of an answer as it goes on. `persists`: whether another request may follow."""

    def __call__(self, answer: Response, *, persists: bool) -> bytes: ...


@dataclass
class Side:
    """One end, and what has been read from it."""

    duplex: Duplex
    inlet: Inlet

    @classmethod
    def of(cls, duplex: Duplex) -> Side:
        return cls(duplex, Inlet(duplex))

    @property
    def spent(self) -> bool:
        return self.duplex.spent or self.inlet.buffered

    async def write(self, data: bytes) -> None:
        if self.duplex.offer(data):
            return
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self.duplex.write(data)
        except TimeoutError:
            raise Broken(f"no byte was taken for {STALL_SECONDS:g} s") from None


@dataclass(frozen=True)
class Done:
    """How it went. `upgraded`: the connection is no longer HTTP."""

    near_persists: bool
    far_persists: bool
    upgraded: bool = False


class NothingCame(Broken):
    """The server ended the connection before the first byte of its answer."""


async def exchange(asked: Request, sent: bytes, near: Side, far: Side, *, encode: Encode, used: Callable[[], None], upgrade: bool) -> Done:
    """`sent` is the head as it goes on, `encode` makes the answer's. `used` is called whenever bytes pass.

    Raises `Refusal` while the answer has not begun, `Truncated` once it has, `NothingCame`, and `Broken` when the client is gone.
    """
    used()
    try:
        await far.write(sent)
    except Broken as error:
        raise NothingCame(str(error)) from error
    body = framing.of_request(asked)
    if body.done:
        return await _answer(asked, near, far, encode=encode, used=used, whole=lambda: True, upgrade=upgrade)
    trouble: list[Exception] = []
    answering = asyncio.current_task()
    assert answering is not None

    async def send_body() -> None:
        try:
            await _pass_body(near, far, body, used)
        except (Broken, BadHead) as error:
            # The client's fault: there is nobody, or no more, to answer.
            trouble.append(error)
            answering.cancel()

    sending = asyncio.create_task(send_body())
    try:
        return await _answer(asked, near, far, encode=encode, used=used, whole=lambda: body.done, upgrade=False)
    except asyncio.CancelledError:
        if not trouble:
            raise
        answering.uncancel()
        error = trouble[0]
        raise (Refusal(400, "bad_request", error.message, "send a well-formed body") if isinstance(error, BadHead) else error) from None
    finally:
        sending.cancel()
        await asyncio.wait([sending])


async def _pass_body(near: Side, far: Side, body: framing.Framing, used: Callable[[], None]) -> None:
    deaf = False
    while not body.done:
        data = await near.inlet.read()
        if not data:
            raise Broken("the client ended within its request")
        taken = body.take(data)
        if taken < len(data):
            near.inlet.put_back(data[taken:])
            data = data[:taken]
        used()
        if deaf:
            continue
        try:
            await far.write(data)
        except Broken:
            # It may have answered before it hung up: the rest is read and dropped, as long as the answer takes.
            deaf = True


async def _answer(asked: Request, near: Side, far: Side, *, encode: Encode, used: Callable[[], None], whole: Callable[[], bool], upgrade: bool) -> Done:
    answer = await _final_head(asked, near, far, encode, used)
    if answer.status == 101:
        if not upgrade:
            raise Refusal(502, "bad_gateway", "the server changed the protocol unasked")
        await near.write(encode(answer, persists=True))
        return Done(near_persists=False, far_persists=False, upgraded=True)
    body = framing.of_response(answer, asked.method)
    if answer.chunked and asked.minor == 0:
        raise Refusal(502, "bad_gateway", "the server answered in chunks, which HTTP/1.0 does not know")
    # A body that the client has yet to send can't be told from its next request.
    persists = asked.persistent and not body.until_close and whole()
    first = encode(answer, persists=persists)
    if far.inlet.buffered and not body.done:
        data = await far.inlet.read()
        try:
            taken = body.take(data)
        except BadHead as error:
            raise Refusal(502, "bad_gateway", f"the server's answer is malformed: {error.message}") from None
        far.inlet.put_back(data[taken:])
        first += data[:taken]
    await near.write(first)
    try:
        await _pass_answer(near, far, body, used)
    except BadHead as error:
        raise Truncated(error.message) from None
    return Done(persists and whole(), answer.persistent and not body.until_close and whole() and not far.spent)


async def _final_head(asked: Request, near: Side, far: Side, encode: Encode, used: Callable[[], None]) -> Response:
    """Interim answers are passed on."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            while True:
                raw = await far.inlet.head(heads.SIZE)
                if raw is None:
                    raise NothingCame("the server ended the connection without an answer")
                used()
                answer = heads.response(raw)
                if answer.status >= 200 or answer.status == 101:
                    return answer
                if asked.minor:
                    await near.write(encode(answer, persists=True))
    except TimeoutError:
        raise Refusal(504, "no_answer", f"the server in the sandbox has not answered for {ANSWER_SECONDS:g} s", "look at its log") from None
    except NothingCame:
        raise
    except (Broken, BadHead) as error:
        why = error.message if isinstance(error, BadHead) else str(error)
        raise Refusal(502, "bad_gateway", f"the server's answer is malformed: {why}", "look at its log") from None


async def _pass_answer(near: Side, far: Side, body: framing.Framing, used: Callable[[], None]) -> None:
    while not body.done:
        try:
            data = await far.inlet.read()
        except Broken as error:
            raise Truncated(str(error)) from error
        if not data:
            if body.until_close:
                return
            raise Truncated("the server ended within its answer")
        taken = body.take(data)
        if taken < len(data):
            far.inlet.put_back(data[taken:])
            data = data[:taken]
        used()
        await near.write(data)


async def splice(near: Side, far: Side, used: Callable[[], None]) -> None:
    """Bytes both ways until both have ended, each with its half, or one has failed."""

    async def one_way(source: Side, sink: Side) -> None:
        while data := await source.inlet.read():
            used()
            await sink.duplex.write(data)
        sink.duplex.finish()

    ways = [asyncio.create_task(one_way(near, far)), asyncio.create_task(one_way(far, near))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
