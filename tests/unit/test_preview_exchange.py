"""How long an exchange waits for whom: for a server that does not answer, for a client that takes nothing."""

from __future__ import annotations

import asyncio

import pytest

from corral.preview import exchange, head, onward
from corral.preview.answers import Refusal
from corral.preview.doors import By, Target
from corral.preview.duplex import Broken
from corral.preview.exchange import Side
from corral.preview.head import Request, Response


class End:
    """One end of a connection: what it will say, and whether it takes what it is told."""

    spent = False

    def __init__(self, says: bytes = b"", *, takes: bool = True) -> None:
        self._says, self._takes = says, takes
        self.told = b""

    async def read(self) -> bytes:
        if not self._says:
            await asyncio.Future()
        said, self._says = self._says, b""
        return said

    async def write(self, data: bytes) -> None:
        if not self._takes:
            await asyncio.Future()
        self.told += data

    def offer(self, _data: bytes) -> bool:
        return False

    def finish(self) -> None: ...
    def close(self) -> None: ...


def asked(text: str) -> Request:
    return head.request(text.replace("\n", "\r\n").encode())


async def pass_on(request: Request, near: End, far: End) -> exchange.Done:
    def encode(answer: Response, *, persists: bool) -> bytes:
        return onward.response(answer, Target("sb-a", 80, By.HOST), request, host=None, secure=False, persists=persists)

    return await exchange.exchange(request, b"GET", Side.of(near), Side.of(far), encode=encode, used=lambda: None, upgrade=False)


GET = asked("GET / HTTP/1.1\nHost: a\n\n")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "ANSWER_SECONDS", 0.01)
    monkeypatch.setattr(exchange, "STALL_SECONDS", 0.01)


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\nX:", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
async def test_a_server_that_does_not_answer_is_given_up(says: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        await pass_on(GET, End(), End(says))
    assert (refused.value.status, refused.value.code) == (504, "no_answer")


async def test_a_server_that_takes_no_request_is_given_up() -> None:
    with pytest.raises(Broken):
        await pass_on(GET, End(), End(takes=False))


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    with pytest.raises(Broken):
        await pass_on(GET, End(takes=False), End(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"))
