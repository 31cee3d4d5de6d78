"""files: how fast big ones go in and out."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

from corral import Client
from corral.bench.figure import Figure, Floor, percentile
from corral.places import Places, default_home

_PIECE = 1024 * 1024


def files(client: Client, n: int, image: str, size: int) -> Figure:
    """MiB/s of one big file up and down (a sample is the slower of both), against a copy over loopback TCP into a file on the same pool."""
    up: list[float] = []
    down: list[float] = []
    with client.sandboxes.create(image, disk=2 * size + 1024, memory=512) as sandbox:
        for _ in range(n):
            up.append(size / _seconds(lambda: sandbox.files.write("/bench.bin", _zeros(size))))
            down.append(size / _seconds(lambda: _swallow(sandbox.files.pieces("/bench.bin"), size)))
    floor = [size / _seconds(lambda: _loopback_copy(size)) for _ in range(n)]
    more = {"image": image, "size": size, "up": percentile(up, 50), "down": percentile(down, 50)}
    return Figure("files", "MiB/s", [min(pair) for pair in zip(up, down, strict=True)], 0, Floor("loopback copy into the pool", floor), more)


def _seconds(do: Callable[[], object]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _zeros(mib: int) -> Iterator[bytes]:
    piece = os.urandom(_PIECE)
    for _ in range(mib):
        yield piece


def _swallow(pieces: Iterator[bytes], mib: int) -> None:
    total = sum(len(piece) for piece in pieces)
    if total != mib * _PIECE:
        raise AssertionError(f"{total} bytes came down, not {mib} MiB")


def _loopback_copy(mib: int) -> None:
    """What a byte has to go through at least: a socket of this machine and a file of the pool."""
    pool = Places(default_home()).pool
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.NamedTemporaryFile(dir=pool if pool.is_dir() else None) as file:

        def send() -> None:
            with socket.create_connection(listener.getsockname()) as line:
                for piece in _zeros(mib):
                    line.sendall(piece)

        sender = threading.Thread(target=send)
        sender.start()
        line, _ = listener.accept()
        with line:
            while piece := line.recv(_PIECE):
                file.write(piece)
        file.flush()
        sender.join()
