"""preview: a web server in a sandbox, reached by its preview. The floors are the same server reached through the sandbox's network device, from inside the switch: at once, and by nginx
where that is installed. A preview goes through the guest agent instead, so that it needs no network and reaches servers on 127.0.0.1."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from corral import Client, Sandbox
from corral.bench.device import reached
from corral.bench.figure import Figure, Floor, percentile
from corral.errors import SetupError
from corral.node.netns import Namespace
from corral.places import Places, default_home

IMAGE = "base"
"""With Python, which the server inside is written in."""
PORT = 8000
AT_ONCE = 16
"""Connections that ask at the same time."""
BULK = 500 << 20
IDLE = 1000
"""Websockets that are open and silent."""

_SERVER = r"""
import asyncio
class Server(asyncio.Protocol):
    def __init__(self): self.data, self.left, self.free = b"", 0, None
    def connection_made(self, transport): self.transport = transport
    def pause_writing(self): self.free = asyncio.get_running_loop().create_future()
    def resume_writing(self): self.free.set_result(None); self.free = None
    def data_received(self, data):
        if self.left:
            self.left -= len(data)
            if self.left <= 0: self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            head, self.data = self.data[:end], self.data[end + 4:]
            line = head[:head.find(b"\r\n")]
            if b"pgrade: websocket" in head: self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            elif line.startswith(b"POST"):
                low = head.lower(); self.left = int(low[low.find(b"content-length:") + 15:].split(b"\r\n")[0]) - len(self.data); self.data = b""
            elif line.startswith(b"GET /bulk?"): asyncio.ensure_future(self.bulk(int(line[10:].split(b" ")[0])))
            else: self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    async def bulk(self, size):
        piece = bytes(1 << 20)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while size > 0:
            if self.free: await self.free
            self.transport.write(piece[:size]); size -= len(piece)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "0.0.0.0", 8000, backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
_NGINX = """
daemon off; worker_processes 1; pid {at}/pid; error_log {at}/error.log;
events {{ worker_connections 1024; }}
http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
  upstream box {{ server {to}; keepalive 64; }}
  server {{ listen unix:{at}/nginx.sock; client_max_body_size 0;
    location / {{ proxy_pass http://box; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_buffering off; proxy_request_buffering off; }} }} }}
"""

Dial = Callable[[], socket.socket]


@dataclass
class _Load:
    """Requests of some connections at once."""

    samples: list[float] = field(default_factory=list[float])
    failures: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.samples) / self.seconds if self.seconds else 0.0


def preview(client: Client, n: int, _image: str) -> Figure:
    """Milliseconds of a request on a kept connection, 16 at a time. Besides: requests a second, MB/s down and up, memory of idle websockets."""
    places = Places(default_home())
    with client.sandboxes.create(IMAGE, cpu=2, memory=1024) as sandbox:
        started(sandbox)
        url = urlsplit(sandbox.preview(PORT).url)
        if url.scheme != "http":
            raise SetupError("this measures previews without TLS", hint="start the server without --tls")
        port, head = url.port or 80, f"Host: {url.netloc}\r\nCorral-Token: {sandbox.preview_token()}\r\n".encode()

        def by_preview() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=60)

        more: dict[str, Any] = {}
        with reached(places, sandbox) as (switch, address):

            def by_device() -> socket.socket:
                return switch.run(lambda: socket.create_connection((address, PORT), timeout=60))

            _load(by_device, b"Host: x\r\n", n)  # the pool makes another member meanwhile
            direct = _load(by_device, b"Host: x\r\n", n)
            down_direct, up_direct = _bulk(by_device, b"Host: x\r\n")
            floor = Floor("the same server through the sandbox's network device", direct.samples)
            ours = _load(by_preview, head, n)
            down, up = _bulk(by_preview, head)
            more |= {"requests_s": ours.rate, "requests_s_direct": direct.rate, "mb_s_down_ratio": down / down_direct, "mb_s_up_ratio": up / up_direct}
            with _nginx(switch, address) as by_nginx:
                if by_nginx is not None:
                    theirs = _load(by_nginx, b"Host: x\r\n", n)
                    more |= {"requests_s_nginx": theirs.rate, "requests_ratio": ours.rate / theirs.rate, "nginx_p99": percentile(theirs.samples, 99)}
                    floor = Floor("nginx, through the sandbox's network device", theirs.samples)
        more |= {"mb_s_down": down, "mb_s_up": up, "idle_websockets_mb": _idle(by_preview, head, places)}
    return Figure("preview", "ms", ours.samples, ours.failures, floor, more)


def started(sandbox: Sandbox) -> None:
    """Start the web server, at `PORT` of the sandbox. It answers `ok`."""
    process = sandbox.exec("python3", "-c", _SERVER)
    if process.stdout.readline() != "ready\n":
        raise SetupError("the web server to measure with did not start", hint=f"it needs python3 in the image {IMAGE}")


def _load(dial: Dial, head: bytes, n: int) -> _Load:
    load, each, turns = _Load(), max(1, n // AT_ONCE), threading.Barrier(AT_ONCE + 1)
    request = b"GET / HTTP/1.1\r\n" + head + b"\r\n"

    def ask() -> None:
        with dial() as line:
            for number in range(each + 1):
                if number == 1:
                    turns.wait()
                began = time.perf_counter()
                line.sendall(request)
                answer = b""
                while not answer.endswith(b"\r\n\r\nok"):
                    if not (data := line.recv(65_536)):
                        load.failures += 1
                        return
                    answer += data
                if number:
                    load.samples.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=ask) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    turns.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    load.seconds = time.perf_counter() - began
    return load


def _bulk(dial: Dial, head: bytes) -> tuple[float, float]:
    """MB/s from the sandbox and to it."""
    buffer = bytearray(1 << 20)
    with dial() as line:
        began, got = time.perf_counter(), 0
        line.sendall(b"GET /bulk?%d HTTP/1.1\r\n" % BULK + head + b"\r\n")
        while got < BULK and (size := line.recv_into(buffer)):
            got += size
        down = got / (time.perf_counter() - began) / 1e6
    with dial() as line:
        began, piece = time.perf_counter(), bytes(1 << 20)
        line.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n" % BULK + head + b"\r\n")
        for _ in range(BULK // len(piece)):
            line.sendall(piece)
        line.recv(65_536)
        return down, BULK / (time.perf_counter() - began) / 1e6


def _idle(dial: Dial, head: bytes, places: Places) -> float | None:
    """MB that so many websockets take in the preview process; None where it can't be seen."""
    try:
        status = Path(f"/proc/{int(places.preview_pid.read_text())}/status")
        before = _resident(status)
    except (OSError, ValueError):
        return None
    with contextlib.ExitStack() as stack:
        for _ in range(IDLE):
            line = stack.enter_context(dial())
            line.sendall(b"GET /ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + head + b"\r\n")
            line.recv(65_536)
        return (_resident(status) - before) / 1e6


def _resident(status: Path) -> int:
    return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmRSS"))


@contextlib.contextmanager
def _nginx(switch: Namespace, address: str) -> Generator[Dial | None]:
    """nginx before the server in the sandbox. It listens on a Unix socket. None: it is not installed."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as at:
        Path(at, "nginx.conf").write_text(_NGINX.format(at=at, to=f"{address}:{PORT}"))

        def dial() -> socket.socket:
            line = socket.socket(socket.AF_UNIX)
            line.settimeout(60)
            line.connect(f"{at}/nginx.sock")
            return line

        words = [program, "-c", f"{at}/nginx.conf", "-p", at]
        with switch.run(lambda: subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)) as server:
            try:
                _until_listening(dial, server)
                yield dial
            finally:
                server.terminate()


def _until_listening(dial: Dial, server: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        try:
            dial().close()
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.05)
        else:
            return
    raise SetupError("nginx did not start", hint="leave it out of PATH to measure without")
