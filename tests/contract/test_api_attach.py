"""The WebSocket of a process, message by message."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Iterator

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from harness.api import Api
from harness.server import Server

STDOUT, STDERR, EXIT, ACCEPTED, DROPPED = 1, 2, 3, 4, 5
STDIN, EOF, RESIZE, SIGNAL = 0, 1, 2, 3
HEADER = struct.Struct("<BQ")


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture(scope="module")
def path(api: Api) -> Iterator[str]:
    box = api.create(name=f"attach-{uuid.uuid4().hex[:8]}")
    yield f"/v1/sandboxes/{box['id']}/processes"
    api.delete(box["id"])


def start(api: Api, path: str, command: str, **fields: object) -> str:
    return f"{path}/{api.ok('POST', path, status=201, json={'command': command, 'stdin': True, **fields})['id']}"


def attach(api: Api, process: str, query: str = "", *, key: str | None = None) -> ClientConnection:
    url = api.server.url.replace("http", "ws", 1) + process + "/attach" + query
    return connect(url, additional_headers={"Authorization": f"Bearer {key or api.key}"}, compression=None)


def say(line: ClientConnection, kind: int, offset: int = 0, payload: bytes = b"") -> None:
    line.send(HEADER.pack(kind, offset) + payload)


def hear(line: ClientConnection) -> tuple[int, int, bytes]:
    message = line.recv(timeout=30)
    assert isinstance(message, bytes)
    return *HEADER.unpack_from(message), message[HEADER.size :]


def until(line: ClientConnection, kind: int) -> tuple[int, int, bytes]:
    while True:
        heard = hear(line)
        if heard[0] == kind:
            return heard


def test_what_goes_in_comes_back_and_the_end_is_told(api: Api, path: str) -> None:
    with attach(api, start(api, path, "cat; echo bye >&2; exit 3")) as line:
        say(line, STDIN, 0, b"hello")
        heard = {kind: (offset, payload) for kind, offset, payload in (hear(line), hear(line))}
        assert heard == {STDOUT: (0, b"hello"), ACCEPTED: (5, b"")}
        say(line, EOF, 5)
        assert until(line, STDERR) == (STDERR, 0, b"bye\n")
        assert json.loads(until(line, EXIT)[2])["exit_code"] == 3
        with pytest.raises(ConnectionClosed) as closed:
            line.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1000


def test_a_new_connection_goes_on_where_the_old_one_was(api: Api, path: str) -> None:
    process = start(api, path, "cat")
    with attach(api, process) as line:
        say(line, STDIN, 0, b"0123456789")
        assert until(line, STDOUT) == (STDOUT, 0, b"0123456789")
    with attach(api, process, "?stdout=4") as line:
        assert hear(line) == (STDOUT, 4, b"456789")
        say(line, STDIN, 5, b"56789abc")
        assert until(line, STDOUT) == (STDOUT, 10, b"abc")
        say(line, SIGNAL, 0, b"\x09")
        assert json.loads(until(line, EXIT)[2])["signal"] == 9


def test_a_signal_overtakes_input_that_nobody_reads(api: Api, path: str) -> None:
    with attach(api, start(api, path, "trap 'echo caught; exit' INT; echo ready; while :; do sleep 0.1; done")) as line:
        assert until(line, STDOUT)[2] == b"ready\n"
        for number in range(40):
            say(line, STDIN, number * 65_536, b"x" * 65_536)
        say(line, SIGNAL, 0, b"\x02")
        assert until(line, STDOUT)[2] == b"caught\n"
        until(line, EXIT)


def test_a_terminal_is_resized(api: Api, path: str) -> None:
    with attach(api, start(api, path, "read x; stty size", pty={"rows": 24, "cols": 80})) as line:
        say(line, RESIZE, 0, struct.pack("<HH", 33, 111))
        say(line, STDIN, 0, b"\n")
        out = b""
        while b"33 111" not in out:
            out += until(line, STDOUT)[2]


@pytest.mark.parametrize(
    "message", [b"", b"\x00", b"\x09" + bytes(8), HEADER.pack(RESIZE, 0) + b"x", HEADER.pack(SIGNAL, 0) + b"\xff", HEADER.pack(STDIN, 99) + b"gap", "text"]
)
def test_a_message_that_makes_no_sense_ends_the_connection_and_nothing_else(api: Api, path: str, message: bytes | str) -> None:
    process = start(api, path, "cat")
    with attach(api, process) as line:
        line.send(message)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                line.recv(timeout=30)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code in (4400, 4409)
        assert closed.value.rcvd.reason
    assert api.ok("GET", process)["running"]
    api.ok("DELETE", process, status=204)


def test_a_connection_that_can_not_be_is_refused_like_any_request(api: Api, path: str) -> None:
    for process, query, key, status, code in (
        (f"{path}/pr-aaaaaaaaaaaaaaaa", "", None, 404, "not_found"),
        (path.replace("sb-", "sb-x"), "", None, 404, "not_found"),
        (start(api, path, "true"), "?stdout=x", None, 400, "invalid_argument"),
        (start(api, path, "true"), "", "ck_none", 401, "unauthenticated"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            attach(api, process if "/processes/" in process else process + "/pr-aaaaaaaaaaaaaaaa", query, key=key)
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == code
