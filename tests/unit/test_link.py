"""The node's end of a link against an agent that may do anything: whatever it sends, its sandbox may end, and nothing else happens."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from corral.errors import CorralError, SandboxEnded, TooLarge, Unavailable
from corral.node.files import Files
from corral.node.guest import Guest
from corral.node.link import GARBAGE_LIMIT, Link, RequestFailed
from corral.node.processes import Bounds
from corral.node.start import Defaults
from corral.schema.file import Glob, ListFiles
from corral.schema.process import Process, ProcessStart
from corral.wire import frame, messages
from corral.wire.frame import Type
from corral.wire.requests import Ping, Stat
from harness.peer import HELLO, Peer

EXIT = {"event": "exit", "code": 0, "signal": None, "stdout": 0, "stderr": 0, "seconds": 0.1}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Ends:
    """A link, its peer, and what became of it."""

    def __init__(self) -> None:
        self.near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.near, far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.peer = Peer(far)
        self.garbage: list[str] = []
        self._link: Link | None = None

    @property
    def link(self) -> Link:
        self._link = self._link or Link(self.near, self.garbage.append)
        return self._link

    async def guest(self, directory: Path, **options: Any) -> Guest:
        guest = Guest(self.link, directory, "sb-test", **options)
        greeting = asyncio.create_task(guest.hello())
        number, _ = await self.peer.request("hello")
        await self.peer.answer(number, HELLO)
        await greeting
        return guest

    async def start(self, guest: Guest) -> tuple[str, int]:
        """A process, as far as the node knows: its id and channel."""
        starting = asyncio.create_task(guest.processes.start(ProcessStart(argv=["x"], stdin=True)))
        number, request = await self.peer.request("start")
        await self.peer.answer(number, {"ok": True, "pid": 7})
        return (await starting).id, request["channel"]

    def close(self) -> None:
        if self._link is not None:
            self._link.close()
        self.near.close()
        self.peer.socket.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    with capture_logs():
        yield ends
    ends.close()


# ── requests ──


async def test_answers_come_to_whom_they_belong_in_any_order(ends: Ends) -> None:
    asking = [asyncio.create_task(ends.link.request(Stat(path=b"%d" % n, follow=False), messages.Started)) for n in range(50)]
    requests = [await ends.peer.request() for _ in range(50)]
    for number, request in reversed(requests):
        await ends.peer.answer(number + 1000, {"ok": True, "pid": 0})
        await ends.peer.answer(number, {"ok": True, "pid": int(base64.b64decode(request["path"]))})
    assert [(await each).pid for each in asking] == list(range(50))
    assert not ends.link.busy


async def test_nothing_is_sent_behind_the_last_word_until_it_may_speak_again(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    process, channel = await ends.start(guest)
    last = asyncio.create_task(ends.link.request(Ping(), last=True))
    number, _ = await ends.peer.request("ping")
    later = asyncio.create_task(ends.link.request(Stat(path=b"/", follow=False), messages.Started))
    await ends.peer.data(channel, 1, 0, b"out")
    await ends.peer.answer(number, {"ok": True})
    await last
    writing = asyncio.create_task(guest.processes.write_stdin(process, b"in"))
    for _ in range(10):
        await asyncio.sleep(0)
    with pytest.raises(BlockingIOError):
        ends.peer.socket.recv(1)
    assert ends.link.busy
    ends.link.speak()
    number, request = await ends.peer.request()
    assert request["op"] == "stat"
    await ends.peer.answer(number, {"ok": True, "pid": 3})
    assert (await later).pid == 3
    while (got := await ends.peer.frame()).type is not Type.DATA:
        assert got.type is Type.ACK
    assert bytes(got.payload) == b"in"
    assert await writing == 2


async def test_what_nobody_waits_for_any_more_is_not_asked_later(ends: Ends) -> None:
    ends.link.hush()
    left = asyncio.create_task(ends.link.request(Stat(path=b"/left", follow=False), messages.Started))
    late = asyncio.create_task(ends.link.request(Stat(path=b"/late", follow=False), messages.Started, timeout=0))
    with pytest.raises(Unavailable, match="did not answer"):
        await late
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert not ends.link.busy
    ends.link.speak()
    asking = asyncio.create_task(ends.link.request(Ping()))
    number, request = await ends.peer.request()
    assert request["op"] == "ping"
    await ends.peer.answer(number, {"ok": True})
    await asking


async def test_a_refusal_carries_its_reason(ends: Ends) -> None:
    asking = asyncio.create_task(ends.link.request(Ping()))
    number, _ = await ends.peer.request()
    await ends.peer.answer(number, {"ok": False, "error": {"code": "EACCES", "message": "no", "path": "/w=="}})
    with pytest.raises(RequestFailed) as caught:
        await asking
    assert (caught.value.problem.code, caught.value.problem.path) == ("EACCES", b"\xff")


async def test_no_answer_in_time_is_unavailable_and_a_late_one_is_ignored(ends: Ends) -> None:
    asking = asyncio.create_task(ends.link.request(Ping(), timeout=0.01))
    number, _ = await ends.peer.request()
    with pytest.raises(Unavailable, match="did not answer"):
        await asking
    await ends.peer.answer(number, {"ok": True})
    again = asyncio.create_task(ends.link.request(Ping()))
    number, _ = await ends.peer.request()
    await ends.peer.answer(number, {"ok": True})
    await again
    assert ends.garbage == []


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"ok": 1}',
        b'{"ok": false}',
        b'{"ok": false, "error": {"code": "lower case", "message": ""}}',
        b'{"ok": true}',
        b'{"ok": true, "pid": "7"}',
        b'{"ok": true, "pid": -1}',
        b'{"ok": true, "pid": 1e99}',
        b'{"ok": true, "pid": 7, "x": ' + b"[" * 100_000,
        b'{"ok": true, "pid": 7, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_an_answer_that_makes_no_sense_is_an_error_of_the_guest(ends: Ends, body: bytes) -> None:
    asking = asyncio.create_task(ends.link.request(Ping(), messages.Started))
    number, _ = await ends.peer.request()
    await ends.peer.send(frame.message(Type.RESPONSE, number, body))
    with pytest.raises(Unavailable, match="makes no sense"):
        await asking


async def test_a_request_that_does_not_fit_is_refused(ends: Ends) -> None:
    with pytest.raises(TooLarge, match="bytes"):
        await ends.link.request(Stat(path=bytes(1 << 20), follow=False))
    assert not ends.link.busy


async def test_the_end_reaches_everybody_who_waits_after_the_last_frames(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    asking = asyncio.create_task(guest.ping())
    await ends.peer.request("ping")
    await ends.peer.data(channel, 1, 0, b"last words")
    ends.peer.socket.close()
    with pytest.raises(SandboxEnded):
        await asking
    process = await guest.processes.wait(id)
    assert (process.lost, process.stdout_offset) == (True, 10)
    with pytest.raises(SandboxEnded):
        await guest.ping()


async def test_closing_leaves_the_sandbox_to_the_next_server(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, _ = await ends.start(guest)
    asking = asyncio.create_task(guest.ping())
    await ends.peer.request("ping")
    waiting = asyncio.create_task(guest.processes.wait(id))
    following = asyncio.create_task(anext(guest.processes.raw_output(id)))
    await asyncio.sleep(0)
    guest.close()
    for each in (asking, waiting, following):
        with pytest.raises(Unavailable, match="stopping"):
            await each
    assert guest.processes.get(id).running


# ── garbage ──


async def test_a_guest_that_sends_garbage_is_ended_once(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, _ = await ends.start(guest)
    for n in range(GARBAGE_LIMIT + 5):
        assert len(ends.garbage) == 0 or n >= GARBAGE_LIMIT
        await ends.peer.send(b"" if n % 3 else b"\xff" * n + b"x")
    assert (await guest.processes.wait(id, 10)).lost
    assert len(ends.garbage) == 1
    with pytest.raises(SandboxEnded, match="garbage"):
        await guest.ping()


garbage_frames = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda kind, flags, stream, channel, offset, payload: struct.pack("<BBHIQ", kind, flags, stream, channel, offset) + payload,
        st.integers(0, 7),
        st.integers(0, 3),
        st.integers(0, 3),
        st.one_of(st.integers(0, 9000), st.integers(0, 2**32 - 1)),
        st.one_of(st.integers(0, 100), st.integers(0, 2**64 - 1)),
        st.one_of(
            st.binary(max_size=100),
            st.sampled_from([json.dumps(body).encode() for body in (EXIT, {"event": "closed"}, {"event": "activity", "processes": 3}, {"ok": True, "pid": 3})]),
        ),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packets=st.lists(garbage_frames, max_size=30))
def test_any_packets_at_all_only_end_the_sandbox(packets: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> None:
    async def run() -> None:
        ends = Ends()
        try:
            guest = await ends.guest(tmp_path_factory.mktemp("spool"))
            id, channel = await ends.start(guest)
            reading = asyncio.create_task(guest.processes.wait(id))
            failures: list[dict[str, Any]] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
            for packet in packets:
                await ends.peer.send(packet[:4] + struct.pack("<I", channel) + packet[8:] if len(packet) > 20 and packet[1] == 0 else packet)
            ends.peer.socket.close()
            process = await asyncio.wait_for(reading, 10)
            assert not process.running
            assert len(ends.garbage) <= 1
            assert failures == []
        finally:
            ends.close()

    with capture_logs():
        asyncio.run(run())


@pytest.mark.parametrize(
    ("packet", "word"),
    [
        (frame.data_header(4, 0, 0, fin=False) + b"x", "stream 0"),
        (frame.data_header(4, 1, 1 << 20, fin=False) + b"x", "window"),
        (frame.ack(4, 0, 1, 4096), "ack"),
        (frame.ack(4, 1, 0, 4096), "ack"),
        (frame.message(Type.EVENT, 4, b'{"event":"closed"}'), "Closed"),
        (frame.message(Type.EVENT, 4, json.dumps({**EXIT, "stdout": 1 << 40}).encode()), "window"),
        (frame.message(Type.EVENT, 0, json.dumps(EXIT).encode()), "no channel"),
        (frame.message(Type.REQUEST, 1, b"{}"), "requests"),
    ],
)
async def test_lies_about_a_channel_are_counted(ends: Ends, tmp_path: Path, packet: bytes, word: str) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    if packet[4:8] == struct.pack("<I", 4):
        packet = packet[:4] + struct.pack("<I", channel) + packet[8:]
    for _ in range(GARBAGE_LIMIT):
        await ends.peer.send(packet)
    assert (await guest.processes.wait(id, 10)).lost
    assert word in ends.garbage[0]


async def test_frames_of_channels_nobody_has_are_dropped(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    for channel in (1, 5000, frame.MAX_CHANNEL):
        for _ in range(GARBAGE_LIMIT):
            await ends.peer.data(channel, 1, 0, b"x")
            await ends.peer.event(channel, EXIT)
            await ends.peer.send(frame.ack(channel, 0, 9, 9))
    asking = asyncio.create_task(guest.ping())
    number, _ = await ends.peer.request("ping")
    await ends.peer.answer(number, {"ok": True})
    await asking
    assert ends.garbage == []


async def test_an_exit_status_that_comes_before_its_output_waits_for_it(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    await ends.peer.event(channel, {**EXIT, "code": 3, "stdout": 10})
    await ends.peer.event(channel, {**EXIT, "code": 4, "stdout": 0})
    assert (await guest.processes.wait(id, 0.05)).running
    await ends.peer.data(channel, 1, 0, b"0123456789later", fin=True)
    process = await guest.processes.wait(id, 10)
    assert (process.exit_code, process.stdout_offset) == (3, 15)
    output = [item async for item in guest.processes.raw_output(id)]
    assert [item.data for item in output if not isinstance(item, Process)] == [b"0123456789"]
    await ends.peer.data(channel, 2, 0, b"", fin=True)
    _, request = await ends.peer.request("close")
    assert request["channel"] == channel


async def test_output_is_acknowledged_only_when_it_is_spooled(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    for n in range(8):
        await ends.peer.data(channel, 1, n * 100_000, bytes(100_000))
    while ends.peer.acks.get((channel, 1), 0) < 600_000:
        got = await ends.peer.frame()
        assert got.type is Type.ACK
        ends.peer.acks[got.channel, got.stream] = got.offset
        assert sum(file.stat().st_size for file in (tmp_path / id).iterdir()) >= got.offset
        assert got.window == frame.DEFAULT_WINDOW


async def test_answers_longer_than_asked_for_are_cut(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    files = Files(guest.link, guest.processes.next_channel)
    names = [base64.b64encode(b"/%d" % n).decode() for n in range(20)]
    entries = [
        {"name": name, "path": name, "type": "file", "size": 0, "mode": 0, "uid": 0, "gid": 0, "user": None, "group": None, "mtime": 1e300} for name in names
    ]
    listing = asyncio.create_task(files.list(ListFiles(path="/", limit=3)))
    await ends.peer.answer((await ends.peer.request("list"))[0], {"ok": True, "entries": entries, "more": False})
    found = await listing
    assert ([entry.name for entry in found.entries], found.more) == (["/0", "/1", "/2"], True)
    assert found.entries[0].modified_at.year == 9999
    # One that says for ever that there is more, and sends nothing.
    globbing = asyncio.create_task(files.glob(Glob(pattern="/*")))
    await ends.peer.answer((await ends.peer.request("glob"))[0], {"ok": True, "paths": names, "more": True})
    await ends.peer.answer((await ends.peer.request("glob"))[0], {"ok": True, "paths": [], "more": True})
    assert len((await globbing).paths) == 20


async def test_a_greeting_that_makes_no_sense_is_refused(ends: Ends, tmp_path: Path) -> None:
    for body in ({**HELLO, "version": 2}, {"ok": True}, {"ok": False, "error": {"code": "EPROTO", "message": "no"}}, {**HELLO, "channels": [{"channel": 0}]}):
        guest = Guest(ends.link, tmp_path, "sb-test", defaults=Defaults(), bounds=Bounds())
        greeting = asyncio.create_task(guest.hello())
        await ends.peer.answer((await ends.peer.request("hello"))[0], body)
        with pytest.raises(CorralError):
            await greeting


async def test_what_came_before_the_greeting_is_not_taken_and_what_follows_it_is(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    await ends.peer.data(channel, 1, 0, b"old")
    guest.close()
    ends._link = None
    again = Guest(ends.link, tmp_path, "sb-test")
    greeting = asyncio.create_task(again.hello())
    number, hello = await ends.peer.request("hello")
    have = {each["channel"]: each["received"] for each in hello["channels"]}
    assert have == {channel: {"1": 0, "2": 0}}
    held = {"channel": channel, "kind": "process", "id": id, "pid": 7, "received": {"0": 5}, "ended": None}
    stranger = {"channel": 77, "kind": "read", "received": {}, "ended": {"event": "closed"}}
    await ends.peer.event(channel, EXIT)
    await ends.peer.answer(number, {**HELLO, "channels": [held, stranger]})
    await ends.peer.data(channel, 1, 0, b"old", fin=True)
    await ends.peer.data(channel, 2, 0, b"", fin=True)
    await ends.peer.event(channel, {**EXIT, "code": 9, "stdout": 3})
    await greeting
    closed = {(await ends.peer.request("close"))[1]["channel"] for _ in range(2)}
    assert closed == {77, channel}
    process = again.processes.get(id)
    assert (process.exit_code, process.stdout_offset, process.stdin_offset) == (9, 3, 5)


async def test_an_end_of_standard_input_outlives_the_server(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    assert await guest.processes.write_stdin(id, b"abc", eof=True) == 3
    guest.close()
    for received, resent in ((2, None), (3, True)):
        ends._link = None
        again = Guest(ends.link, tmp_path, "sb-test")
        greeting = asyncio.create_task(again.hello())
        number, _ = await ends.peer.request("hello")
        held = {"channel": channel, "kind": "process", "id": id, "pid": 7, "received": {"0": received}, "ended": None}
        await ends.peer.answer(number, {**HELLO, "channels": [held]})
        await greeting
        if resent:
            # The end comes again, and only then: had a byte been lost, its writer could still send it.
            got = await ends.peer.frame()
            assert (got.type, got.channel, got.offset, got.fin, bytes(got.payload)) == (Type.DATA, channel, 3, True, b"")
            with pytest.raises(CorralError, match="closed"):
                await again.processes.write_stdin(id, b"x")
        else:
            assert again.processes.get(id).stdin_offset == 2
        again.close()


async def test_one_that_does_not_read_costs_no_memory_and_holds_up_nobody(ends: Ends, tmp_path: Path) -> None:
    guest = await ends.guest(tmp_path)
    id, channel = await ends.start(guest)
    files = Files(guest.link, guest.processes.next_channel)
    asking = [asyncio.create_task(files.stat("x")) for _ in range(1024)]
    await asyncio.sleep(0)
    with pytest.raises(CorralError, match="under way"):
        await files.stat("x")
    offset = 0
    for _ in range(200):
        await ends.peer.data(channel, 1, offset, os.urandom(50_000))
        offset += 50_000
    while guest.processes.get(id).stdout_offset < offset:
        await asyncio.sleep(0.001)
    ends.peer.socket.close()
    for each in asking:
        with pytest.raises(SandboxEnded):
            await each
