"""HTTP/1.1 between a sandbox and the real servers: every request is judged, changed as its rule says, and passed on as it comes.

Both sides are parsed and written anew by h11, so that what one side reads as one message the other can't read as two. Where headers are set on requests, answers come
without compression and whole (no ranges), and the values of secrets are taken out of them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import h11

from corral.net import denial, dial
from corral.net.content import HttpRequest
from corral.net.dial import FailedError, RefusedError
from corral.net.dns import is_name
from corral.net.policy import Action, By, Compiled, Ruling
from corral.net.redact import Redactor
from corral.net.visit import Visit
from corral.schema.egress import PLACEHOLDER, HttpAnswer, Verdict

READ: Final = 256 << 10
HEAD: Final = 64 << 10
"""Bytes of a head at most."""
HANDSHAKE: Final = 10.0
FIRST: Final = 20.0
"""Seconds in which a request's head must be whole."""
IDLE: Final = 120.0
"""Seconds between requests, and without a byte of a body."""
ANSWER: Final = 3600.0
"""Seconds without a byte of an answer: models think long."""
LINGER: Final = 2.0
_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]{1,254})(:[0-9]{1,5})?\Z")
_ADDRESS = re.compile(r"[0-9.]+\Z")
_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade", b"expect", b"proxy-authorization", b"http2-settings"})
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})

_PHRASES = {int(status): status.phrase.encode() for status in HTTPStatus}

Headers = list[tuple[bytes, bytes]]


class _RefusedError(Exception):
    """The request is answered by us. `ruling` says why; a status other than 403 is about the request itself."""

    def __init__(self, ruling: Ruling, status: int = 403) -> None:
        super().__init__(ruling.reason)
        self.ruling, self.status = ruling, status


@dataclass(frozen=True)
class _Server:
    """A connection to a real server, as long as requests go to the same."""

    key: tuple[str | None, str, str | None]
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: h11.Connection = field(default_factory=lambda: h11.Connection(h11.CLIENT, HEAD))


@dataclass
class _Exchange:
    """One request and what became of it."""

    request: HttpRequest
    ruling: Ruling
    headers: Headers
    secrets: tuple[str, ...] = ()
    status: int | None = None
    reason: str | None = None
    verdict: Verdict = Verdict.ALLOWED
    began: float = field(default_factory=time.monotonic)


class Web:
    """The requests of one connection. `refused`: every one is answered with this denial."""

    def __init__(self, visit: Visit, *, scheme: Literal["http", "https"], refused: Ruling | None = None) -> None:
        self._visit = visit
        self._scheme = scheme
        self._refused = refused
        self._near = h11.Connection(h11.SERVER, HEAD)
        self._server: _Server | None = None
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._current: HttpRequest | None = None

    async def serve(self, connection: socket.socket) -> None:
        self._visit.stays(self._stays)
        try:
            self._reader, self._writer = await _accept(
                connection, self._visit.services.authority.context(self._visit.name or self._visit.address) if self._scheme == "https" else None
            )
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
            self._leave_server()
            self._writer.transport.abort()

    def _stays(self, compiled: Compiled) -> bool:
        if compiled.kernel.closed:
            return False
        if self._current is not None:
            return compiled.request(self._current).action is not Action.DENY
        return True

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
        exchange = _Exchange(self._facts(event), Ruling(Action.DENY), list(event.headers.raw_items()))
        self._current = exchange.request
        try:
            return await self._do(event, exchange)
        except _RefusedError as refused:
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
        self._check(event, exchange)
        if self._refused is not None:
            raise _RefusedError(self._refused)
        ruling = exchange.ruling = visit.occupant.compiled.request(request)
        if ruling.action is Action.ASK:
            ruling = exchange.ruling = await visit.settled(ruling, method=request.method, path=request.path)
        if ruling.action is Action.DENY:
            raise _RefusedError(ruling)
        if visit.occupant.spent:
            raise _RefusedError(Ruling(Action.DENY, reason="the sandbox's budget of bytes is spent"))
        if ruling.rule is not None and ruling.rule.respond is not None:
            await self._fixed(ruling.rule.respond, exchange)
            return False
        headers, websocket = self._changed(event, exchange)
        server = await self._connected(ruling)
        target = request.target
        if ruling.rule is not None and ruling.rule.proxy is not None:
            headers.append((b"Corral-Original-Url", f"{self._scheme}://{request.name or visit.address}{target}".encode()))
        server.writer.write(server.protocol.send(h11.Request(method=event.method, target=target.encode(), headers=headers)) or b"")
        if self._near.they_are_waiting_for_100_continue:
            self._writer.write(self._near.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        first = self._near.next_event()
        if isinstance(first, h11.Data | h11.EndOfMessage):
            server.writer.write(server.protocol.send(first) or b"")
        if isinstance(first, h11.EndOfMessage):
            again = await self._download(server, exchange, websocket=websocket)
        else:
            again = await self._both(server, exchange)
        if self._near.our_state is not h11.DONE or self._near.their_state is not h11.DONE:
            return False
        if server.protocol.our_state is h11.DONE and server.protocol.their_state is h11.DONE:
            server.protocol.start_next_cycle()
        else:
            self._leave_server()
        return again

    def _facts(self, event: h11.Request) -> HttpRequest:
        visit = self._visit
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in event.headers)
        name = visit.name if self._scheme == "https" else _named(dict(headers).get("host", ""))
        if self._scheme == "http":
            visit.name = name
        target = event.target.decode("latin-1")
        if absolute := re.match(r"https?://[^/?#]*", target):
            target = target[absolute.end() :] or "/"
        return HttpRequest(event.method.decode("latin-1"), target, name, visit.number, visit.port, headers)

    def _check(self, event: h11.Request, exchange: _Exchange) -> None:
        """What no rule can allow, since a server might read it otherwise than we do. Raises `_RefusedError`."""
        names = [name for name, _ in event.headers]
        hosts = [value.decode("latin-1") for name, value in event.headers if name == b"host"]
        target = event.target.decode("latin-1")
        fault: str | None = None
        status = 400
        framing = names.count(b"content-length") + names.count(b"transfer-encoding")
        if sum(len(name) + len(value) + 4 for name, value in event.headers) + len(event.target) > HEAD:
            fault, status = f"a head of more than {HEAD >> 10} KiB", 431
        elif framing > 1 or (b"transfer-encoding" in names and event.http_version < b"1.1"):
            fault = "a request with two lengths"
        elif len(hosts) > 1 or (hosts and _host(hosts[0]) is None):
            fault = "a request without exactly one proper Host"
        elif event.method in (b"TRACE", b"TRACK", b"CONNECT"):
            fault, status = f"{event.method.decode()} is not passed on: it would show what is set on requests, or hide what they are", 403
        elif absolute := re.match(r"https?://([^/?#]*)", target):
            if not hosts or absolute[1].lower() != hosts[0].lower():
                fault = "a request whose target and Host differ"
        elif not target.startswith("/") and not (target == "*" and event.method == b"OPTIONS"):
            fault = "a request without a proper target"
        if fault is None:
            try:
                _ = exchange.request.query
            except ValueError:
                fault = "a request with too many fields in its query"
        if fault is not None:
            raise _RefusedError(Ruling(Action.DENY, reason=fault), status)
        if self._scheme == "https" and self._visit.name is not None and hosts and _named(hosts[0]) != self._visit.name:
            reason = f"the Host {hosts[0]} is not the server that the TLS connection names ({self._visit.name})"
            raise _RefusedError(Ruling(Action.DENY, reason=reason))

    # What goes out

    def _changed(self, event: h11.Request, exchange: _Exchange) -> tuple[Headers, bool]:
        """The headers as they are sent on, and whether it asks for a websocket. Raises `_RefusedError` when a secret can't be used."""
        visit, rule = self._visit, exchange.ruling.rule
        connection = [token.strip().lower() for name, value in event.headers if name == b"connection" for token in value.split(b",")]
        websocket = b"upgrade" in connection and any(name == b"upgrade" and value.strip().lower() == b"websocket" for name, value in event.headers)
        dropped = (_HOP | set(connection)) - _FRAMING
        secrets = visit.occupant.tenant.secrets
        added: Headers = []
        used: list[str] = []
        for name, text in (rule.inject if rule and rule.inject else {}).items():
            wanted = PLACEHOLDER.findall(text)
            if missing := [secret for secret in wanted if secret not in secrets]:
                raise _RefusedError(Ruling(Action.DENY, rule, reason=f"the secret {missing[0]} that the rule uses does not exist"))
            if wanted and self._scheme != "https":
                raise _RefusedError(Ruling(Action.DENY, rule, reason="secrets are sent over TLS only: use https"))
            used += wanted
            value = PLACEHOLDER.sub(lambda found: secrets[str(found[1])], text)
            added.append((name.encode(), value.encode()))
        exchange.secrets = tuple(dict.fromkeys(used))
        dropped |= {name.lower() for name, _ in added}
        if visit.occupant.compiled.brokers(visit.name):
            dropped |= {b"accept-encoding", b"range", b"if-range"}
            added.append((b"Accept-Encoding", b"identity"))
        if websocket:
            # Extensions compress, and what is compressed can't be looked through.
            if visit.occupant.compiled.brokers(visit.name):
                dropped |= {b"sec-websocket-extensions"}
            added += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
        return [(name, value) for name, value in exchange.headers if name.lower() not in dropped] + added, websocket

    async def _connected(self, ruling: Ruling) -> _Server:
        """The server that the ruling means; the one of the request before, when it is the same. Raises `RefusedError` as `_RefusedError`, `FailedError`."""
        visit = self._visit
        proxy = ruling.rule.proxy if ruling.rule else None
        by_name = ruling.by is By.NAME and visit.name is not None
        key = (proxy, self._scheme, visit.name if by_name else None)
        if self._server is not None and self._server.key == key and not self._server.reader.at_eof():
            return self._server
        self._leave_server()
        tls, host, port = self._scheme == "https", visit.name, visit.port
        if proxy is not None:
            parts = urlsplit(proxy)
            tls, host = parts.scheme == "https", parts.hostname or ""
            port = parts.port or (443 if tls else 80)
        try:
            if proxy is not None and host and _ADDRESS.match(host):
                if reason := visit.occupant.compiled.reachable(_number(host), None):
                    raise RefusedError(reason)
                connection = await dial.to_address(host, port)
            elif host and (proxy is not None or by_name):
                connection = await dial.to_name(host, port, visit.occupant.compiled, visit.services.upstream)
            else:
                connection = await dial.to_address(visit.address, port)
        except RefusedError as error:
            raise _RefusedError(Ruling(Action.DENY, ruling.rule, reason=str(error))) from None
        visit.reached = connection.getpeername()[0]
        try:
            if tls:
                context = visit.services.verifying
                reader, writer = await asyncio.open_connection(
                    sock=connection, ssl=context, server_hostname=host or visit.address, ssl_handshake_timeout=HANDSHAKE, limit=READ
                )
            else:
                reader, writer = await asyncio.open_connection(sock=connection, limit=READ)
        except BaseException:
            connection.close()
            raise
        self._server = _Server(key, reader, writer)
        return self._server

    async def _both(self, server: _Server, exchange: _Exchange) -> bool:
        """A request with a body, which may still come while it is answered already."""
        upload = asyncio.create_task(self._upload(server))
        download = asyncio.create_task(self._download(server, exchange, websocket=False))
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

    async def _upload(self, server: _Server) -> None:
        """The request's body, as it comes."""
        while True:
            async with asyncio.timeout(IDLE):
                try:
                    event = await self._next(self._near, self._reader, near=True)
                except h11.RemoteProtocolError as error:
                    raise _RefusedError(Ruling(Action.DENY, reason=f"the body of the request is no proper HTTP: {error}"), 400) from None
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            assert isinstance(event, h11.Data | h11.EndOfMessage)
            server.writer.write(server.protocol.send(event) or b"")
            await server.writer.drain()
            if isinstance(event, h11.EndOfMessage):
                return

    # What comes back

    async def _download(self, server: _Server, exchange: _Exchange, *, websocket: bool) -> bool:
        """The answer, as it comes; whether the connection may be used again."""
        compiled = self._visit.occupant.compiled
        redactor = Redactor(self._visit.occupant.patterns) if compiled.brokers(self._visit.name) else None
        while True:
            async with asyncio.timeout(ANSWER):
                event = await self._next(server.protocol, server.reader, near=False)
            match event:
                case h11.InformationalResponse():
                    if event.status_code == 101:
                        exchange.status = 101
                        if not websocket:
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
                    headers = self._masked([(n, v) for n, v in event.headers.raw_items() if n.lower() not in _HOP], redactor)
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

    def _masked(self, headers: Any, redactor: Redactor | None) -> Headers:
        mask = self._visit.occupant.patterns.mask
        return [(bytes(name), bytes(value) if redactor is None else mask(bytes(value))) for name, value in headers]

    async def _switch(self, server: _Server, event: h11.InformationalResponse, redactor: Redactor | None) -> None:
        """A websocket: bytes both ways until one side ends."""
        await self._send(h11.InformationalResponse(status_code=101, headers=self._masked(event.headers.raw_items(), redactor), reason=event.reason))
        early_near, early_far = self._near.trailing_data[0], server.protocol.trailing_data[0]

        async def down() -> None:
            data = early_far
            while True:
                passed = data if redactor is None else redactor.feed(data)
                self._writer.write(passed)
                await self._writer.drain()
                if not (data := await server.reader.read(READ)):
                    self._writer.write(redactor.end() if redactor else b"")
                    return
                if not self._visit.down(len(data)):
                    return

        async def up() -> None:
            data = early_near
            while True:
                server.writer.write(data)
                await server.writer.drain()
                if not (data := await self._reader.read(READ)) or not self._visit.up(len(data)):
                    return

        ways = [asyncio.create_task(down()), asyncio.create_task(up())]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            # The last words of the server are still passed on.
            await asyncio.wait(ways[:1], timeout=LINGER)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    # Answers of our own

    async def _fixed(self, answer: HttpAnswer, exchange: _Exchange) -> None:
        exchange.status = answer.status
        headers = [(name.encode(), value.encode()) for name, value in answer.headers.items() if name.lower().encode() not in _HOP | _FRAMING]
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
                while await self._reader.read(READ):
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
            data = await reader.read(READ)
            if not (self._visit.up if near else self._visit.down)(len(data)):
                raise FailedError("cut: the sandbox's budget of bytes is spent")
            protocol.receive_data(data)
        return event

    def _leave_server(self) -> None:
        if self._server is not None:
            self._server.writer.transport.abort()
            self._server = None

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


async def _accept(connection: socket.socket, context: ssl.SSLContext | None) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The server's side of a connection."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(READ, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, connection.dup(), ssl=context, ssl_handshake_timeout=HANDSHAKE if context else None, ssl_shutdown_timeout=LINGER if context else None
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _named(host: str) -> str | None:
    """The name in a Host, or None when it is an address or nothing."""
    name = _host(host)
    return None if name is None or _ADDRESS.match(name) else name


def _host(host: str) -> str | None:
    """What stands in a Host without the port, as rules know names; None when it is none."""
    found = _HOST.match(host)
    name = found["name"].lower().removesuffix(".") if found else ""
    return name if is_name(name) else None


def _number(address: str) -> int:
    return int(ipaddress.IPv4Address(address))


def _reason(error: BaseException) -> str:
    match error:
        case FailedError():
            return str(error)
        case ssl.SSLCertVerificationError():
            return f"the server's certificate is not valid: {error.verify_message}"
        case h11.ProtocolError():
            return f"the server's answer is no proper HTTP: {error}"
        case TimeoutError():
            return "the server did not answer in time"
        case _:
            return f"the connection to the server failed: {error}"
