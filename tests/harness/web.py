"""A server to be run inside a sandbox, with what proxies get wrong; and a client that says exactly what it is told to."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SERVER = r"""
import json, socket, sys, threading, time

def serve(c):
    f = c.makefile("rb")
    while True:
        line = f.readline()
        if not line: return
        method, target, version = line.decode().split()
        fields = []
        while (line := f.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            fields.append((name.lower(), value.strip()))
        got = dict(fields)
        if got.get("expect") == "100-continue":
            if target == "/refuse":
                c.sendall(b"HTTP/1.1 413 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"); c.close(); return
            c.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if target == "/count":
            c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while n := int(f.readline(), 16):
                c.sendall(b"%x\r\n%s\r\n" % (n, f.read(n).upper())); f.readline()
            f.readline(); c.sendall(b"0\r\n\r\n"); continue
        size, trailers = 0, []
        if "content-length" in got:
            left = int(got["content-length"])
            while left:
                data = f.read(min(left, 1 << 20))
                if not data: return
                left -= len(data); size += len(data)
        elif got.get("transfer-encoding") == "chunked":
            while n := int(f.readline().split(b";")[0], 16):
                size += len(f.read(n)); f.readline()
            while (line := f.readline()) not in (b"\r\n", b""): trailers.append(line.decode().strip())
        path = target.partition("?")[0]
        if "upgrade" in got.get("connection", "").lower():
            c.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + got["upgrade"].encode() + b"\r\nConnection: Upgrade\r\n\r\n")
            while data := f.read1(65536): c.sendall(data)
            c.sendall(b"bye"); c.close(); return
        if path == "/chunks":
            c.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nx-sum: 11\r\n\r\n")
        elif path == "/events":
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for n in range(3):
                c.sendall(b"data: %d\n\n" % n)
                f.read1(1) if n == 9 else time.sleep(0.05)
            c.close(); return
        elif path == "/wait":
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 0\n\n")
            gone_on.wait(60); c.sendall(b"data: 1\n\n"); c.close(); return
        elif path == "/go-on":
            gone_on.set(); c.sendall(b"HTTP/1.1 204 No\r\n\r\n")
        elif path == "/large":
            c.sendall(b"HTTP/1.1 204 No\r\nX-Large: %s\r\n\r\n" % (b"a" * int(target.partition("?")[2])))
        elif path == "/go-to":
            c.sendall(b"HTTP/1.1 302 Found\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % target.partition("?")[2].encode())
        elif path == "/bulk":
            n = int(target.partition("?")[2]); piece = bytes(1 << 20)
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n)
            while n: c.sendall(piece[:n]); n -= min(n, len(piece))
        elif path == "/short":
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"); c.close(); return
        elif path == "/nothing":
            c.close(); return
        elif path == "/garbage":
            c.sendall(b"HTTP/1.1 200 OK\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"); c.close(); return
        elif path == "/cookie":
            c.sendall(b"HTTP/1.1 204 No\r\nSet-Cookie: a=1; Domain=.corral.localhost\r\n\r\n")
        elif path == "/hang":
            time.sleep(3600)
        else:
            body = json.dumps({"me": sys.argv[1], "method": method, "target": target, "version": version, "headers": fields, "size": size, "trailers": trailers, "peer": c.getpeername()[1]}).encode()
            c.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + (b"" if method == "HEAD" else body))
        if got.get("connection", "").lower() == "close" or version == "HTTP/1.0": c.close(); return

gone_on = threading.Event()
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])), backlog=128)
print("listening", flush=True)
while True:
    c, _ = listener.accept()
    threading.Thread(target=serve, args=(c,), daemon=True).start()
"""


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for field, value in self.headers if field == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        return self.header("corral-error")


class Wire:
    """One connection, on which bytes are said as they are."""

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, name: str = "") -> None:
        self.socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=name)
        self._file = self.socket.makefile("rb")

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, target: str, host: str, *fields: str, body: bytes = b"") -> Answer:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *fields]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.say("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return self.hear(method)

    def hear(self, method: str = "GET") -> Answer:
        """The next answer, interim ones as well."""
        line = self._file.readline()
        assert line, "the connection was closed"
        status = int(line.split(b" ")[1])
        headers: list[tuple[str, str]] = []
        while (line := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name.lower(), value.strip()))
        return Answer(status, headers, b"" if method == "HEAD" or status < 200 or status in (204, 304) else self._body(dict(headers)))

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            whole = b""
            while size := int(self._file.readline().split(b";")[0], 16):
                whole += self._file.read(size)
                self._file.readline()
            trailers = b""
            while (line := self._file.readline()) not in (b"\r\n", b""):
                trailers += line
            return whole + trailers
        return self._file.read(int(headers["content-length"])) if "content-length" in headers else self._file.read()

    def rest(self) -> bytes:
        """Everything until the other side ends."""
        return self._file.read()

    def some(self, size: int) -> bytes:
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@contextlib.contextmanager
def wire(port: int) -> Iterator[Wire]:
    line = Wire(port)
    try:
        yield line
    finally:
        line.close()
