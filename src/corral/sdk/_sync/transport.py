# Generated from sdk/_async/transport.py by scripts/async_to_sync.py: edit that, not this.
"""The one seam to the network: requests, streams and WebSockets to one server; errors in Corral's words only.

It stands on httpcore2's connections (the lower half of httpx2) with a pool of its own, because a request through httpx2's client costs
twice as much, and its pool's cost grows with the square of what is in flight: 100 requests at once took 202 ms there and 31 ms here.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, cast
from urllib.parse import quote, urlencode, urlsplit

import httpcore2

from corral.errors import Unavailable
from corral.sdk import faults
from corral.sdk.connection import Connection
from corral.sdk.retry import Lost, Unreached, delays
from corral.version import __version__

Query = Mapping[str, str | int | float | bool | list[str] | None]
Headers = list[tuple[bytes, bytes]]

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0
QUIET_SECONDS = 50.0
"""Without a byte for this long a stream is taken for dead: the server says something every 15 s."""
IDLE_SECONDS = 50.0
"""How long an unused connection is kept: less than the server does (75 s) and common proxies do (60 s), so that a request never meets a connection that is being closed."""


class Transport:
    """Connections to one server. Safe to share between tasks."""

    def __init__(self, connection: Connection) -> None:
        parts = urlsplit(connection.url)
        scheme, host = parts.scheme.encode(), (parts.hostname or "").encode("idna")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self.connection = connection
        self._origin = httpcore2.Origin(scheme, host, port)
        self._prefix = parts.path.rstrip("/")
        self._headers: Headers = [(b"host", parts.netloc.rpartition("@")[2].encode()), (b"user-agent", f"corral/{__version__}".encode())]
        if connection.key:
            self._headers.append((b"authorization", b"Bearer " + connection.key.encode()))
        if connection.project:
            self._headers.append((b"corral-project", connection.project.encode()))
        self._idle: list[tuple[httpcore2.HTTPConnection, float]] = []
        self._pid = os.getpid()
        self._tls: ssl.SSLContext | None = None
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections that are not in use."""
        while self._idle:
            line, _ = self._idle.pop()
            line.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes = b"",
        content_type: str = "application/json",
        key: str | None = None,
        safe: bool = False,
        seconds: float = ANSWER_SECONDS,
    ) -> bytes:
        """One request, its whole answer. What has an idempotency `key` or is `safe`, and GET and DELETE, is tried again when the connection breaks."""
        headers: Headers = [(b"content-type", content_type.encode())] if body else []
        if key is not None:
            headers.append((b"idempotency-key", key.encode()))
        again = safe or key is not None or method in ("GET", "DELETE")
        waits = delays()
        while True:
            try:
                answer = self.stream(method, path, query=query, body=body, headers=headers, seconds=seconds)
                return answer.read()
            except Lost as error:
                self.pause(waits, error, again=again)

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: bytes | Iterable[bytes] = b"",
        length: int | None = None,
        headers: Headers | None = None,
        seconds: float = QUIET_SECONDS,
    ) -> Answer:
        """One request; its answer is read by the caller, piece by piece. A server that was there a moment ago is waited for while it restarts."""
        target = self._prefix + path + _encoded(query)
        given = self._headers + (headers or [])
        if isinstance(body, bytes):
            length = len(body) if body or method not in ("GET", "DELETE") else None
        if length is not None:
            given.append((b"content-length", b"%d" % length))
        elif not isinstance(body, bytes):
            given.append((b"transfer-encoding", b"chunked"))
        waits = delays()
        while True:
            try:
                line, response = self._open(method, target, given, body, seconds)
            except Unreached as error:
                self.pause(waits, error, again=self._answered)
                continue
            self._answered = True
            answer = Answer(self, line, response)
            if response.status >= 400:
                raise faults.from_answer(response.status, answer.read())
            return answer

    def upgrade(self, path: str, query: Query, headers: Headers) -> tuple[httpcore2.NetworkStream, dict[str, str]]:
        """Turn a connection into a WebSocket's: the bare stream and the headers of the answer."""
        answer = self.stream("GET", path, query=query, headers=headers)
        stream = answer.network_stream
        if stream is None:
            answer.close()
            raise Unavailable("the server did not open a WebSocket", hint="a proxy between may not pass them on")
        return stream, answer.headers

    def _open(
        self, method: str, target: str, headers: Headers, body: bytes | Iterable[bytes], seconds: float
    ) -> tuple[httpcore2.HTTPConnection, httpcore2.Response]:
        origin = self._origin
        url = httpcore2.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=target.encode())
        timeouts = {"connect": CONNECT_SECONDS, "read": seconds, "write": seconds}
        request = httpcore2.Request(method, url, headers=headers, content=body, extensions={"timeout": timeouts})
        line = self._take()
        with network(self.connection.url):
            return line, line.handle_request(request)

    def _take(self) -> httpcore2.HTTPConnection:
        if self._pid != os.getpid():  # after a fork: these sockets are the parent's
            self._idle, self._pid = [], os.getpid()
        while self._idle:
            line, since = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not line.has_expired():
                return line
            line.close()
        if self._origin.scheme == b"https" and self._tls is None:
            self._tls = httpcore2.default_ssl_context()
        return httpcore2.HTTPConnection(self._origin, ssl_context=self._tls)

    def give_back(self, line: httpcore2.HTTPConnection) -> None:
        """A connection whose answer has been read to its end serves again."""
        if line.is_idle() and not line.is_closed():
            self._idle.append((line, time.monotonic()))
        else:
            line.close()

    def pause(self, waits: Iterator[float], error: Unavailable, *, again: bool) -> None:
        """Wait for the next try, or raise when there is none."""
        seconds = next(waits, None) if again else None
        if seconds is None:
            raise error
        time.sleep(seconds)


class Answer:
    """A successful answer whose body is still to be read."""

    def __init__(self, transport: Transport, line: httpcore2.HTTPConnection, response: httpcore2.Response) -> None:
        self._transport = transport
        self._line = line
        self._response = response
        self._closed = False
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}

    @property
    def network_stream(self) -> httpcore2.NetworkStream | None:
        """The bare connection after a switch of protocols."""
        return cast("Any", self._response).extensions["network_stream"] if self.status == 101 else None

    def pieces(self) -> Generator[bytes, None]:
        """The body as it comes. Closes the answer at its end, whichever way that comes."""
        try:
            with network(self._transport.connection.url):
                for piece in self._response.iter_stream():
                    yield piece
        finally:
            self.close()

    def read(self) -> bytes:
        """The whole body."""
        with network(self._transport.connection.url):
            try:
                return self._response.read()
            finally:
                self.close()

    def close(self) -> None:
        """Done with it. A connection that was left in the middle of an answer is closed, which tells the server."""
        if not self._closed:
            self._closed = True
            self._response.close()
            self._transport.give_back(self._line)


@contextmanager
def network(url: str) -> Generator[None, None, None]:
    """No exception of the HTTP library leaves this block."""
    try:
        yield
    except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
        raise Unreached(
            f"no Corral server answers at {url}", hint="start one with `corral up --detach`, or set CORRAL_URL", details={"cause": str(error)}
        ) from None
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, ssl.SSLError) as error:
        what = str(error) or type(error).__name__
        raise Lost(f"the connection to {url} broke: {what}", hint="is the server still running? `corral doctor` tells") from None


def _encoded(query: Query | None) -> str:
    if not query:
        return ""
    pairs: list[tuple[str, str]] = []
    for name, value in query.items():
        match value:
            case None:
                pass
            case bool():
                pairs.append((name, "true" if value else "false"))
            case list():
                pairs += [(name, item) for item in value]
            case _:
                pairs.append((name, str(value)))
    return "?" + urlencode(pairs, quote_via=quote) if pairs else ""
