"""A small internet in a network namespace of its own: a DNS server with whatever zone a test wants, web servers for every name with certificates of a test authority, echoes.

Everything listens on addresses of the ranges for documentation, which count as public. `zone` may be changed at any time; `seen` tells what has arrived.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import IO, cast
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness.namespace import Namespace, enter, join

LOCK = Path("/var/tmp/corral-test-internet.lock")
DNS = "203.0.113.53"
WEB = "203.0.113.10"
OTHER = "203.0.113.11"
SILENT = "203.0.113.99"
"""Takes no packets: connections to it hang."""
HERE = "198.51.100.1"
"""The address of this machine that the internet knows, where it is at the end of this machine's cable."""
METADATA = "169.254.169.254"
PRIVATE = "10.77.0.5"
"""A web server in a private range behind the same cable."""


@dataclass
class Seen:
    """What the internet was asked."""

    queries: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    """Heads, as they came."""
    posts: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Heads with their bodies, of those that had one."""
    connections: list[tuple[str, int]] = field(default_factory=list)
    """Local ends that were connected to."""


@dataclass
class Zone:
    """Name → addresses; `aliases`: name → name. A name in `silent` gets no answer, one in `late` when `Internet.catch_up` is called, one in `truncated` a cut one over UDP."""

    addresses: dict[str, list[str]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)
    ttl: int = 60


class TestAuthority:
    """Signs a certificate for any name."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test's internet")])
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.addresses: tuple[str, ...] = ()
        """What every certificate is good for besides its name."""
        self.file = directory / "internet-ca.pem"
        certificate = self._made(self._name, self._key.public_key(), x509.BasicConstraints(ca=True, path_length=None))
        self.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _made(self, name: x509.Name, key: ec.EllipticCurvePublicKey, constraints: x509.BasicConstraints, host: str | None = None) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1)).add_extension(constraints, critical=True)
        if host:
            names: list[x509.GeneralName] = [x509.DNSName(host), *(x509.IPAddress(ip_address(address)) for address in self.addresses)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def context(self, host: str) -> ssl.SSLContext:
        if host not in self._contexts:
            key = ec.generate_private_key(ec.SECP256R1())
            certificate = self._made(x509.Name([]), key.public_key(), x509.BasicConstraints(ca=False, path_length=None), host)
            file = self._directory / f"{host}.pem"
            private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            file.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(file)
            self._contexts[host] = context
        return self._contexts[host]


def _ended(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """A connection that is still open when the internet ends is cut."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    return served


class Internet:
    """Runs in a thread of its own, from `open` to `close`."""

    def __init__(self, name: str, directory: Path) -> None:
        self.namespace = Namespace(name)
        self._turn: IO[str] | None = None
        self.authority = TestAuthority(directory)
        self.zone = Zone()
        self.seen = Seen()
        self.secret_echo: bytes = b""
        """What /leak answers, in pieces of three bytes, and /raw as the whole of its answer, head included."""
        self.failing: dict[str, int] = {}
        """How many posts to these targets are answered with an error yet."""
        self.statuses: dict[str, int] = {}
        """Answers without a body, by the name of the server or by the path."""
        self.files: Path | None = None
        """What is below /files/."""
        self._ready = threading.Event()
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._late: list[Callable[[], None]] = []
        self._outside: Namespace | None = None
        self._device = ""

    def open(self, outside: Namespace | None, device: str, *, here: str = "192.0.2.1", more: Sequence[str] = ()) -> None:
        """Serve those in another namespace (None: this machine), by a cable whose end there is called `device` and has the address `here`. `more`: further addresses."""
        self._outside, self._device = outside, device
        self.authority.addresses = tuple(more)
        if outside is None:
            # Two test runs at once would have the same addresses on one machine.
            self._turn = LOCK.open("w")
            fcntl.flock(self._turn, fcntl.LOCK_EX)
        join(outside, device, self.namespace, "world")
        for address in (DNS, WEB, OTHER, PRIVATE, *more):
            self.namespace.ip("addr", "add", f"{address}/32", "dev", "world")
        self.namespace.ip("route", "add", f"{here}/32", "dev", "world")
        self.namespace.ip("route", "add", "default", "via", here, "dev", "world")
        from harness.namespace import ip

        where = outside.name if outside else None
        ip("addr", "add", f"{here}/32", "dev", device, namespace=where)
        # Single addresses, never the whole range: this machine may reach real ones of it.
        for address in (DNS, WEB, OTHER, SILENT, PRIVATE, *more):
            ip("route", "add", f"{address}/32", "dev", device, "src", here, namespace=where)
        # Without a neighbour nothing is ever answered, not even that nobody is there.
        ip("neigh", "add", SILENT, "lladdr", "02:00:00:00:00:99", "dev", device, namespace=where)
        self._thread.start()
        assert self._ready.wait(20)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        from harness.namespace import ip

        # The end of a namespace takes its devices along some time later, and the next internet's cable has the same name.
        ip("link", "del", "dev", self._device, namespace=self._outside.name if self._outside else None)
        self.namespace.remove()
        if self._turn is not None:
            self._turn.close()

    async def wait(self, true: Callable[[Seen], bool]) -> None:
        """Until what has arrived is as expected."""
        await asyncio.to_thread(self.until, true)

    def until(self, true: Callable[[Seen], bool], patience: float = 20) -> None:
        """The same, in seconds at most."""
        with self._news:
            assert self._news.wait_for(lambda: true(self.seen), patience)

    def _run(self) -> None:
        enter(self.namespace.fd)
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._contexts = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # A default certificate, replaced by that of the name which is asked for.
        self._contexts.load_cert_chain(self._default())
        self._contexts.sni_callback = self._chosen
        self._contexts.set_alpn_protocols(["http/1.1"])
        dns, _ = await self._loop.create_datagram_endpoint(lambda: _Names(self), local_addr=(DNS, 53))
        echo, _ = await self._loop.create_datagram_endpoint(_Echo, local_addr=(WEB, 443))
        servers = [
            await asyncio.start_server(_ended(self._names), DNS, 53),
            await asyncio.start_server(_ended(self._web), "0.0.0.0", 80, backlog=2000),
            await asyncio.start_server(_ended(self._web), "0.0.0.0", 443, ssl=self._contexts, backlog=2000),
            await asyncio.start_server(_ended(self._echo), "0.0.0.0", 7),
            await asyncio.start_server(_ended(self._greeter), "0.0.0.0", 25),
        ]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        dns.close()
        echo.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for _ in range(3):  # until what was aborted is gone
            await asyncio.sleep(0)

    def _default(self) -> Path:
        self.authority.context("default.invalid")
        return self.authority._directory / "default.invalid.pem"

    def _chosen(self, connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name:
            connection.context = self.authority.context(name)

    # DNS

    def catch_up(self) -> None:
        """Send the answers that have been waiting."""
        self.zone.late.clear()
        for send in self._late:
            self._loop.call_soon_threadsafe(send)
        self._late.clear()

    def send(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """The answer to a datagram, if and when there is one."""
        if (answer := self.answer(data, udp=True)) is None:
            return
        if any(_wire(name) in data for name in self.zone.late):
            self._late.append(lambda: send(answer))
        else:
            send(answer)

    def answer(self, data: bytes, *, udp: bool) -> bytes | None:
        at, labels = 12, []
        while data[at]:
            labels.append(data[at + 1 : at + 1 + data[at]])
            at += 1 + data[at]
        name, kind = b".".join(labels).decode().lower(), int.from_bytes(data[at + 1 : at + 3])
        with self._news:
            self.seen.queries.append((name, kind))
            self._news.notify_all()
        if name in self.zone.silent:
            return None
        question = data[12 : at + 5]
        if udp and name in self.zone.truncated:
            return data[:2] + b"\x83\x80\0\1\0\0\0\0\0\0" + question
        records: list[bytes] = []
        owner = name
        while owner in self.zone.aliases:
            target = self.zone.aliases[owner]
            records.append(_wire(owner) + struct.pack(">HHIH", 5, 1, self.zone.ttl, len(_wire(target))) + _wire(target))
            owner = target
        found = self.zone.addresses.get(owner)
        if kind == 1:
            records += [_wire(owner) + struct.pack(">HHIH", 1, 1, self.zone.ttl, 4) + socket.inet_aton(address) for address in found or ()]
        if kind == 28 and found:
            records.append(_wire(owner) + struct.pack(">HHIH", 28, 1, self.zone.ttl, 16) + bytes(15) + b"\1")
        if kind == 16 and found:
            records.append(_wire(owner) + struct.pack(">HHIH", 16, 1, self.zone.ttl, 6) + b"\5hello")
        code = 0 if found is not None or owner != name else 3
        return data[:2] + (0x8180 | code).to_bytes(2) + b"\0\1" + len(records).to_bytes(2) + b"\0\0\0\0" + question + b"".join(records)

    async def _names(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                data = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
                if (answer := self.answer(data, udp=False)) is not None:
                    writer.write(len(answer).to_bytes(2) + answer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    # TCP

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections.append(writer.get_extra_info("sockname"))
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def _greeter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A server that speaks first."""
        try:
            writer.write(b"220 hello\r\n")
            await self._echo(reader, writer)
        except OSError:
            pass

    async def _web(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.connections.append(writer.get_extra_info("sockname"))
        try:
            while await self._request(reader, writer):
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        with self._news:
            self.seen.requests.append(head)
            self._news.notify_all()
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        method, target, _ = lines[0].split(" ")
        url = urlsplit(target)
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif length := int(headers.get("content-length", 0)):
            body = await reader.readexactly(length)
            with self._news:
                self.seen.posts.append((head, body))
                self._news.notify_all()
            if self.failing.get(target, 0) > 0:
                self.failing[target] -= 1
                writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
                return True

        def whole(data: bytes, *more: str) -> bool:
            writer.write("\r\n".join(["HTTP/1.1 200 OK", f"Content-Length: {len(data)}", *more, "", ""]).encode() + (b"" if method == "HEAD" else data))
            return headers.get("connection") != "close"

        if (status := self.statuses.get(headers.get("host", "")) or self.statuses.get(url.path)) is not None:
            writer.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Length: 0\r\n\r\n".encode())
            return True
        match url.path:
            case "/echo":
                return whole(head + body)
            case "/bytes":
                size = int(parse_qs(url.query)["n"][0])
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
                block = bytes(65536)
                while size:
                    writer.write(block[: min(size, 65536)])
                    size -= min(size, 65536)
                    await writer.drain()
                return True
            case "/leak":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Echo: " + self.secret_echo + b"\r\n\r\n")
                for at in range(0, len(self.secret_echo), 3):
                    piece = self.secret_echo[at : at + 3]
                    writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write(b"0\r\nX-Trailer: " + self.secret_echo + b"\r\n\r\n")
                return True
            case "/gzip":
                return whole(gzip.compress(b"hello " * 100), "Content-Encoding: gzip")
            case "/raw":
                writer.write(self.secret_echo)
                return False
            case "/never":
                await asyncio.sleep(3600)
                return False
            case "/garbage":
                writer.write(b"what is this\r\n\r\n")
                return False
            case "/short":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
                return False
            case "/redirect":
                writer.write(f"HTTP/1.1 302 Found\r\nLocation: {parse_qs(url.query)['to'][0]}\r\nContent-Length: 0\r\n\r\n".encode())
                return True
            case "/socket":
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
                return False
            case path if self.files is not None and path.startswith("/files/"):
                file = self.files / path.removeprefix("/files/")
                if file.is_file():
                    return whole(file.read_bytes())
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return True
            case _:
                return whole(f"{method} {headers.get('host')} {target}\n".encode())


class _Names(asyncio.DatagramProtocol):
    def __init__(self, internet: Internet) -> None:
        self._internet = internet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._internet.send(data, lambda answer: self._transport.sendto(answer, addr))


class _Echo(asyncio.DatagramProtocol):
    """Something like QUIC, for those who only look at ports."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


def _wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
