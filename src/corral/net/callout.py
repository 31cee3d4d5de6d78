"""One HTTPS request from the server to an address that a user has given: to the public internet only, by our own resolution of the name, never to this machine, no redirects followed."""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import h11

from corral.errors import Forbidden, Unavailable
from corral.net import dial, policy
from corral.net.head import is_address
from corral.net.ranges import Protocol
from corral.net.upstream import Server, Upstream, servers_of_machine
from corral.schema.egress import EgressPolicy, Preset

PATIENCE = 10.0
"""Seconds for the whole of it."""
_HANDSHAKE = 5.0
_READ = 16 << 10

Headers = Sequence[tuple[str, str]]


class Callout:
    """`resolvers`: DNS servers, `ADDRESS[:PORT]`; none: this machine's."""

    def __init__(self, resolvers: Sequence[str] = ()) -> None:
        fixed: list[Server] = [(address, int(port or 53)) for address, _, port in (text.partition(":") for text in resolvers)]
        servers: Callable[[], list[Server]] = (lambda: fixed) if fixed else servers_of_machine
        self._upstream = Upstream(servers)
        self._allowed = policy.compile(EgressPolicy(default=Preset.PUBLIC))

    async def post(self, url: str, headers: Headers, body: bytes) -> None:
        """Raises `Unavailable` unless the answer is one of success (2xx), `Forbidden` for an address that is not public."""
        try:
            async with asyncio.timeout(PATIENCE):
                status = await self._post(url, headers, body)
        except TimeoutError:
            raise Unavailable(f"no answer within {PATIENCE:g} s") from None
        except dial.RefusedError as error:
            raise Forbidden(str(error), hint="give an address of the public internet") from None
        except (dial.FailedError, OSError, h11.ProtocolError) as error:
            raise Unavailable(str(error) or type(error).__name__) from None
        if not 200 <= status < 300:
            raise Unavailable(f"it answered with the status {status}")

    async def _post(self, url: str, headers: Headers, body: bytes) -> int:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        if is_address(host):
            if reason := self._allowed.reachable(int(ipaddress.IPv4Address(host)), Protocol.TCP, port):
                raise dial.RefusedError(reason)
            connection = await dial.to_address(host, port)
        else:
            connection = await dial.to_name(host, port, self._allowed, self._upstream)
        try:
            reader, writer = await asyncio.open_connection(
                sock=connection, ssl=ssl.create_default_context(), server_hostname=host, ssl_handshake_timeout=_HANDSHAKE, limit=_READ
            )
        except BaseException:
            connection.close()
            raise
        try:
            protocol = h11.Connection(h11.CLIENT, _READ)
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            every = [("Host", parts.netloc), *headers, ("Content-Length", str(len(body))), ("Connection", "close")]
            for event in (h11.Request(method="POST", target=target, headers=every), h11.Data(data=body), h11.EndOfMessage()):
                writer.write(protocol.send(event) or b"")
            await writer.drain()
            while not isinstance(event := protocol.next_event(), h11.Response):
                if event is h11.NEED_DATA:
                    protocol.receive_data(await reader.read(_READ))
                elif isinstance(event, h11.ConnectionClosed):
                    raise dial.FailedError("the connection ended before an answer")
            return event.status_code
        finally:
            writer.transport.abort()
