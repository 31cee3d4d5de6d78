"""thaw: what the first use of a frozen sandbox costs beside the next."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from corral import Client, Sandbox
from corral.bench import preview
from corral.bench.figure import Figure, Floor, percentile, timed
from corral.errors import SetupError

_WAIT = 10.0
"""Seconds for a sandbox that nobody uses to be frozen."""
_LOOK = 0.05


def thaw(client: Client, n: int, image: str) -> Figure:
    """A question to the guest agent of a frozen sandbox; the floor is the same question again, at once. `request_*`: the same of a request to a web server inside, through its preview."""
    with client.sandboxes.create(image) as sandbox:
        frozen, awake = _twice(sandbox, n, lambda: timed(sandbox.ports))
        preview.started(sandbox)
        url = urlsplit(sandbox.preview(preview.PORT).url)
        if url.scheme != "http":
            raise SetupError("this measures previews without TLS", hint="start the server without --tls")
        request = f"GET / HTTP/1.1\r\nHost: {url.netloc}\r\nCorral-Token: {sandbox.preview_token()}\r\n\r\n".encode()
        first, second = _twice(sandbox, n, lambda: timed(lambda: _ask(url.port or 80, request)))
    more = {"image": image, "request_p50": percentile(first, 50), "request_p99": percentile(first, 99), "request_awake_p50": percentile(second, 50)}
    return Figure("thaw", "ms", frozen, 0, Floor("the same of one that is awake", awake), more)


def _twice(sandbox: Sandbox, n: int, measured: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Of one that is frozen, and again of the same."""
    frozen: list[float] = []
    awake: list[float] = []
    for _ in range(n):
        _until_frozen(sandbox)
        frozen.append(measured())
        awake.append(measured())
    return frozen, awake


def _until_frozen(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + _WAIT
    while not sandbox.refresh().info.frozen:
        if time.monotonic() > deadline:
            raise SetupError(
                "a sandbox that nobody uses is not frozen", hint="this runsc may burn nothing when idle; `corral up --freeze always` freezes all the same"
            )
        time.sleep(_LOOK)


def _ask(port: int, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        line.sendall(request)
        answer = b""
        while not answer.endswith(b"\r\n\r\nok"):
            if not (data := line.recv(65_536)):
                raise SetupError("the preview closed the connection")
            answer += data
