"""What a suite for websockets asks of an echo server, asked through a preview, of another project's server and client."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from corral import Client, Sandbox
from corral.places import Places
from harness import fetched, homes
from harness.server import Server

ECHO = """
import asyncio, websockets

async def echo(peer):
    async for message in peer:
        if message == "bye": await peer.close(4321, "as asked")
        else: await peer.send(message)

async def main():
    async with websockets.serve(echo, "127.0.0.1", 8765, max_size=32 << 20, ping_interval=None):
        print("ready", flush=True)
        await asyncio.Future()

asyncio.run(main())
"""
SIZES = [0, 1, 125, 126, 127, 65_535, 65_536, 1 << 20, 16 << 20]
"""Around the three ways in which a length is written (RFC 6455, 5.2), and many windows of a stream."""

Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def box(shared: Places) -> Iterator[Sandbox]:
    wheels = fetched.wheels(shared, "websockets")
    home = homes.make("websockets")
    homes.furnish(Places(home), shared, ["base"])
    server = Server(home, extra={"CORRAL_POOL": "2", "CORRAL_EDGE_PORT": "0"})
    with homes.running(server), Client(url=server.url, key=server.key) as client, client.sandboxes.create("base", memory=1024) as sandbox:
        for wheel in wheels.iterdir():
            sandbox.files.write(f"/wheels/{wheel.name}", wheel.read_bytes())
        sandbox.run("pip install -q --no-index --find-links /wheels websockets", user="root", timeout=120).check()
        process = sandbox.exec("python3", "-c", ECHO)
        assert next(iter(process.stdout)) == "ready\n"
        yield sandbox


@pytest.fixture(scope="module")
def connect(shared: Places, box: Sandbox) -> Connect:
    sys.path.insert(0, str(fetched.installed(shared, "websockets")))
    module: Any = importlib.import_module("websockets.sync.client")
    url = box.preview(8765).url.replace("http", "ws", 1)
    headers = {"Corral-Token": box.preview_token()}

    def to(**how: Any) -> Any:
        return module.connect(url, additional_headers=headers, max_size=32 << 20, open_timeout=60, close_timeout=60, **how)

    return to


@pytest.mark.parametrize("compression", ["deflate", None])
@pytest.mark.parametrize("size", SIZES)
def test_messages_come_back_as_they_were(connect: Connect, size: int, compression: str | None) -> None:
    data = os.urandom(size)
    with connect(compression=compression) as line:
        for message in (data, "é" * (size // 2)):
            line.send(message)
            assert line.recv(timeout=120) == message


@pytest.mark.parametrize("pieces", [[b"one"], [b"", b"two", b""], [bytes([n]) * 1000 for n in range(200)]])
def test_fragments_are_one_message(connect: Connect, pieces: list[bytes]) -> None:
    with connect() as line:
        line.send(iter(pieces))
        assert line.recv(timeout=60) == b"".join(pieces)


def test_a_ping_between_fragments_is_answered(connect: Connect) -> None:
    with connect() as line:
        answered: list[Any] = []

        def pieces() -> Iterator[str]:
            yield "before "
            answered.append(line.ping(b"there?"))
            yield "after"

        line.send(pieces())
        assert line.recv(timeout=60) == "before after"
        assert answered[0].wait(60)


def test_who_closes_says_why(connect: Connect) -> None:
    closed: Any = importlib.import_module("websockets.exceptions").ConnectionClosed
    with connect() as line:
        line.send("bye")
        with pytest.raises(closed) as told:
            line.recv(timeout=60)
    assert (told.value.rcvd.code, told.value.rcvd.reason) == (4321, "as asked")


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (b"\x81\x84\0\0\0\0\xff\xff\xff\xff", 1007),  # text that is no UTF-8
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that there is not
        (b"\x81\x02hi", 1002),  # not masked
        (b"\x09\x80\0\0\0\0", 1002),  # a control frame in fragments
        (b"\x80\x80\0\0\0\0", 1002),  # goes on with nothing
        (b"\x82\xff\0\0\0\0\x7f\0\0\0\0\0\0\0", 1009),  # too large
    ],
)
def test_what_breaks_the_protocol_is_answered_by_the_server_inside(connect: Connect, frame: bytes, code: int) -> None:
    closed: Any = importlib.import_module("websockets.exceptions").ConnectionClosed
    with connect(compression=None) as line:
        line.socket.sendall(frame)
        with pytest.raises(closed) as told:
            line.recv(timeout=60)
    assert told.value.rcvd.code == code


def test_many_are_open_at_once_and_each_gets_its_own(connect: Connect) -> None:
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(connect()) for _ in range(100)]
        for number, line in enumerate(lines):
            line.send(str(number))
        assert [line.recv(timeout=60) for line in lines] == [str(number) for number in range(100)]
