"""HTTP/1.1 between a sandbox and the real servers: every request is judged, changed as its rule says, and passed on as it comes.

Both sides are parsed and written anew by h11, so that what one side reads as one message the other can't read as two. Where headers are set on requests, answers come
without compression and whole (no ranges), and the values of secrets are taken out of them.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import h11

from corral.net import denial, dial, far, head, streams, websocket
from corral.net.content import HttpRequest
from corral.net.dial import FailedError
from corral.net.far import HANDSHAKE, Far
from corral.net.head import FRAMING, HOP, ORIGINAL_URL, Headers, Onward, RefusedError, Scheme, same
from corral.net.policy import Action, Compiled, Ruling
from corral.net.redact import Redactor
from corral.net.streams import MOST
from corral.net.visit import Visit
from corral.schema.egress import HttpAnswer, Verdict

FIRST: Final = 20.0
"""Seconds in which the first request's head must be whole."""
IDLE: Final = 120.0
"""Seconds between requests, and without a byte of a body."""
ANSWER: Final = 3600.0
"""Seconds without a byte of an answer: models think long."""
LINGER: Final = 2.0
_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}


@dataclass
class _Exchange:
    """One request and what became of it."""

    request: HttpRequest
    ruling: Ruling
    secrets: tuple[str, ...] = ()
    brokered: bool = False
    """Whether its answer must not tell secrets, whatever the policy says by then."""
    status: int | None = None
    reason: str | None = None
    verdict: Verdict = Verdict.ALLOWED
    began: float = field(default_factory=time.monotonic)


class Web:
    """The requests of one connection. `refused`: every one is answered with this denial."""

    def __init__(self, visit: Visit, *, scheme: Scheme, refused: Ruling | None = None) -> None:
        self._visit = visit
        self._scheme: Scheme = scheme
        self._refused = refused
        self._near = h11.Connection(h11.SERVER, head.SIZE)
        self._far: Far | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._current: HttpRequest | None = None

    async def serve(self, connection: socket.socket) -> None:
        with self._visit.occupant.room.taken():
            await self._serve(connection)

    async def _serve(self, connection: socket.socket) -> None:
        self._visit.stays(self._stays)
        try:
            context = self._visit.services.authority.context(self._visit.name or self._visit.address) if self._scheme == "https" else None
            self._reader, self._writer = await streams.accepted(connection, self._visit.occupant.room, context, handshake=HANDSHAKE, shutdown=LINGER)
        except (OSError, TimeoutError) as error:
            reason = f"TLS with the sandbox failed: {error or 'it took too long'}; does its program trust the authority of this installation?"
            self._visit.told("tls", Verdict.FAILED, self._refused or Ruling(Action.ALLOW), reason=reason)
            return
        try:
            while await self._one():
                self._near.start_next_cycle()
            if self._near.our_state not in (h11.SEND_BODY, h11.ERROR):
                await self._farewell()
        except (h11.RemoteProtocolError, OSError, TimeoutError, asyncio.IncompleteReadError):
            # The sandbox went away, or speaks no HTTP (what could be answered has been).
            pass
        finally:
            self._leave_far()
            self._writer.transport.abort()

    def _stays(self, compiled: Compiled) -> bool:
        if compiled.kernel.closed:
            return False
        if self._current is None:
            return True
        ruling = compiled.request(self._current)
        if self._far is None:
            return ruling.action is not Action.DENY
        return far.target(self._visit, ruling, self._scheme) == self._far.target and far.goes_on(self._visit, compiled, ruling, self._far)

    # One request

    async def _one(self) -> bool:
        """Whether another may follow."""
        visit = self._visit
        sent, received = visit.sent, visit.received
        try:
            async with asyncio.timeout(FIRST if self._near.our_state is h11.IDLE and not visit.sent else IDLE):
                event = await self._next(self._near, self._reader, near=True)
        except h11.RemoteProtocolError as error:
            await self._answer(error.error_status_hint, b'{"error": {"code": "invalid_argument", "message": "this is no proper HTTP request"}}\n')
            return False
        if not isinstance(event, h11.Request):
            return False
        request = head.facts(event, sni=visit.name, scheme=self._scheme, address=visit.number, port=visit.port)
        if self._scheme == "http":
            visit.name = request.name
        exchange = _Exchange(request, Ruling(Action.DENY))
        self._current = exchange.request
        try:
            return await self._do(event, exchange)
        except RefusedError as refused:
            exchange.ruling, exchange.status, exchange.verdict, exchange.reason = refused.ruling, refused.status, Verdict.DENIED, refused.ruling.reason
            request = exchange.request
            body = denial.body(refused.ruling, host=request.name or visit.address, port=visit.port, method=request.method, path=request.path)
            await self._answer(refused.status, body)
            return False
        except asyncio.CancelledError:
            exchange.verdict, exchange.reason = Verdict.FAILED, "cut: the egress policy has changed, or the sandbox ended"
            raise
        except (FailedError, h11.ProtocolError, ssl.SSLError, OSError, TimeoutError) as error:
            exchange.verdict, exchange.reason = Verdict.FAILED, _reason(error)
            if self._near.our_state is h11.SEND_RESPONSE:
                exchange.status = 502
                await self._answer(502, denial.failure(exchange.reason, host=exchange.request.name or visit.address, port=visit.port))
            return False
        finally:
            self._current = None
            self._told(exchange, visit.sent - sent, visit.received - received)

    async def _do(self, event: h11.Request, exchange: _Exchange) -> bool:
        visit, request = self._visit, exchange.request
        head.check(event, request, sni=visit.name, scheme=self._scheme)
        if self._refused is not None:
            raise RefusedError(self._refused)
        exchange.ruling = visit.occupant.compiled.request(request)
        ruling = exchange.ruling = await visit.settled(exchange.ruling, method=request.method, path=request.path)
        if ruling.action is Action.DENY:
            raise RefusedError(ruling)
        if visit.occupant.spent:
            raise RefusedError(Ruling(Action.DENY, reason="the sandbox's budget of bytes is spent"))
        if ruling.rule is not None and ruling.rule.respond is not None:
            await self._fixed(ruling.rule.respond, exchange)
            return False
        exchange.brokered = visit.occupant.compiled.brokers(visit.name)
        sent_on = head.onward(event, ruling, secrets=visit.occupant.tenant.secrets, brokered=exchange.brokered, scheme=self._scheme)
        exchange.secrets = sent_on.secrets
        server = await self._connected(ruling)
        headers, target = sent_on.headers, request.target.encode("latin-1")
        if server.target.chosen:
            headers = [(name, value) for name, value in headers if not same(name, ORIGINAL_URL)]
            headers.append((ORIGINAL_URL, f"{self._scheme}://{request.name or visit.address}".encode() + target))
        server.writer.write(server.protocol.send(h11.Request(method=event.method, target=target, headers=headers)) or b"")
        if self._near.they_are_waiting_for_100_continue:
            self._writer.write(self._near.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        first = self._near.next_event()
        if isinstance(first, h11.Data | h11.EndOfMessage):
            server.writer.write(server.protocol.send(first) or b"")
        if isinstance(first, h11.EndOfMessage):
            again = await self._download(server, exchange, sent_on)
        else:
            again = await self._both(server, exchange, sent_on)
        if self._near.our_state is not h11.DONE or self._near.their_state is not h11.DONE:
            return False
        if server.protocol.our_state is h11.DONE and server.protocol.their_state is h11.DONE:
            server.protocol.start_next_cycle()
        else:
            self._leave_far()
        return again

    # What goes out

    async def _connected(self, ruling: Ruling) -> Far:
        """The server that the ruling means; the one of the request before, when it is the same. Raises `RefusedError`, `FailedError`."""
        visit = self._visit
        wanted = far.target(visit, ruling, self._scheme)
        if self._far is not None and self._far.target == wanted and self._far.usable and far.goes_on(visit, visit.occupant.compiled, ruling, self._far):
            return self._far
        self._leave_far()
        try:
            self._far = await far.connect(visit, wanted)
        except dial.RefusedError as error:
            raise RefusedError(Ruling(Action.DENY, ruling.rule, reason=str(error))) from None
        if visit.cut_already:
            raise RefusedError(Ruling(Action.DENY, reason="the egress policy has changed meanwhile"))
        return self._far

    async def _both(self, server: Far, exchange: _Exchange, sent_on: Onward) -> bool:
        """A request with a body, which may still come while it is answered already."""
        upload = asyncio.create_task(self._upload(server))
        download = asyncio.create_task(self._download(server, exchange, sent_on))
        try:
            await asyncio.wait([upload, download], return_when=asyncio.FIRST_COMPLETED)
            if upload.done() and (error := upload.exception()) is not None and not download.done():
                raise error
            again = await download
            # Answered before the request was whole: there is nobody left for the rest.
            return again and upload.done() and upload.exception() is None
        finally:
            upload.cancel()
            download.cancel()
            await asyncio.gather(upload, download, return_exceptions=True)

    async def _upload(self, server: Far) -> None:
        """The request's body, as it comes."""
        while True:
            async with asyncio.timeout(IDLE):
                try:
                    event = await self._next(self._near, self._reader, near=True)
                except h11.RemoteProtocolError as error:
                    raise RefusedError(Ruling(Action.DENY, reason=f"the body of the request is no proper HTTP: {error}"), 400) from None
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            assert isinstance(event, h11.Data | h11.EndOfMessage)
            server.writer.write(server.protocol.send(event) or b"")
            await server.writer.drain()
            if isinstance(event, h11.EndOfMessage):
                return

    # What comes back

    async def _download(self, server: Far, exchange: _Exchange, sent_on: Onward) -> bool:
        """The answer, as it comes; whether the connection may be used again."""
        occupant = self._visit.occupant
        redactor = Redactor(lambda: occupant.patterns) if exchange.brokered or occupant.compiled.brokers(self._visit.name) else None
        while True:
            async with asyncio.timeout(ANSWER):
                event = await self._next(server.protocol, server.reader, near=False)
            match event:
                case h11.InformationalResponse():
                    if event.status_code == 101:
                        exchange.status = 101
                        if not sent_on.websocket:
                            raise FailedError("the server switched to a protocol that was not asked for")
                        await self._switch(server, event, redactor)
                        return False
                    if event.status_code != 100:
                        await self._send(h11.InformationalResponse(status_code=event.status_code, headers=self._masked(event.headers.raw_items(), redactor)))
                case h11.Response():
                    exchange.status = event.status_code
                    encoding = [value.strip().lower() for name, value in event.headers if name == b"content-encoding"]
                    if redactor is not None and any(value not in (b"identity", b"") for value in encoding):
                        raise FailedError("the server compressed its answer although it was asked not to, so that secrets could not be taken out of it")
                    headers = self._masked([(n, v) for n, v in event.headers.raw_items() if n.lower() not in HOP], redactor)
                    reason = bytes(event.reason) if redactor is None else self._visit.occupant.patterns.mask(bytes(event.reason))
                    await self._send(h11.Response(status_code=event.status_code, headers=headers, reason=reason))
                case h11.Data():
                    data = bytes(event.data) if redactor is None else redactor.feed(bytes(event.data))
                    if data:
                        await self._send(h11.Data(data=data))
                case h11.EndOfMessage():
                    if redactor is not None and (rest := redactor.end()):
                        await self._send(h11.Data(data=rest))
                    await self._send(h11.EndOfMessage(headers=self._masked(event.headers.raw_items(), redactor)))
                    return True
                case _:
                    raise FailedError("the server ended the connection before its answer was whole")

    def _masked(self, headers: Iterable[tuple[bytes, bytes]], redactor: Redactor | None) -> Headers:
        if redactor is None:
            return [(bytes(name), bytes(value)) for name, value in headers]
        mask = self._visit.occupant.patterns.mask
        return [(mask(bytes(name)), mask(bytes(value))) for name, value in headers]

    async def _switch(self, server: Far, event: h11.InformationalResponse, redactor: Redactor | None) -> None:
        """A websocket: bytes both ways until one side ends."""
        await self._send(h11.InformationalResponse(status_code=101, headers=self._masked(event.headers.raw_items(), redactor), reason=event.reason))
        early = self._near.trailing_data[0], server.protocol.trailing_data[0]
        near = self._reader, self._writer
        await websocket.relay(near, (server.reader, server.writer), early=early, redactor=redactor, up=self._visit.up, down=self._visit.down)

    # Answers of our own

    async def _fixed(self, answer: HttpAnswer, exchange: _Exchange) -> None:
        exchange.status = answer.status
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items() if name.lower().encode() not in HOP | FRAMING]
        await self._answer(answer.status, answer.body.encode(), headers)

    async def _answer(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A whole answer, after which the connection ends (what is still to come of the request is not read)."""
        if self._near.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        if headers is None:
            headers = [(b"Content-Type", b"application/json"), (denial.HEADER.encode(), b"1")]
        bodyless = status in (204, 304)
        framing: Headers = [(b"Connection", b"close")] if bodyless else [(b"Content-Length", str(len(body)).encode()), (b"Connection", b"close")]
        await self._send(h11.Response(status_code=status, headers=[*headers, *framing], reason=_PHRASES.get(status, b"")))
        if not bodyless and (self._current is None or self._current.method != "HEAD"):
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def _farewell(self) -> None:
        """Say that nothing follows, and give the sandbox a moment to read the last answer: closing with its bytes unread would reset the connection."""
        try:
            async with asyncio.timeout(LINGER):
                if self._scheme == "https":
                    self._writer.close()
                    await self._writer.wait_closed()
                    return
                await self._writer.drain()
                self._writer.write_eof()
                while await self._reader.read(MOST):
                    pass
        except TimeoutError:
            pass

    # Bytes

    async def _send(self, event: h11.Event) -> None:
        self._writer.write(self._near.send(event) or b"")
        async with asyncio.timeout(IDLE):
            await self._writer.drain()

    async def _next(self, protocol: h11.Connection, reader: asyncio.StreamReader, *, near: bool) -> Any:
        while (event := protocol.next_event()) is h11.NEED_DATA:
            data = await reader.read(MOST)
            if not (self._visit.up if near else self._visit.down)(len(data)):
                raise FailedError("cut: the sandbox's budget of bytes is spent")
            protocol.receive_data(data)
        return event

    def _leave_far(self) -> None:
        if self._far is not None:
            self._far.writer.transport.abort()
            self._far = None

    def _told(self, exchange: _Exchange, sent: int, received: int) -> None:
        visit, request = self._visit, exchange.request
        visit.services.log.add(
            sandbox=visit.occupant.sandbox,
            kind="http",
            name=request.name,
            address=visit.reached or visit.address,
            port=visit.port,
            method=request.method,
            path=request.path,
            status=exchange.status,
            verdict=exchange.verdict,
            rule=exchange.ruling.title,
            reason=exchange.reason,
            secrets=list(exchange.secrets),
            sent=sent,
            received=received,
            duration=round(time.monotonic() - exchange.began, 6),
        )


def _reason(error: BaseException) -> str:
    match error:
        case FailedError():
            return str(error)
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not valid: {error.verify_message}"
        case h11.ProtocolError():
            # What h11 says of it repeats the server's bytes, in which a secret may be.
            return "the server's answer is no proper HTTP"
        case TimeoutError():
            return "the server did not answer in time"
        case _:
            return f"the connection to the server failed: {error}"
