"""Processes: a handle like Popen, over a connection that may break at any byte."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest

from corral.errors import InvalidState, NotFound
from harness.api import Api, data
from harness.cutter import Cutter
from harness.flavor import FLAVORS
from harness.server import Server


@pytest.fixture(params=FLAVORS)
def sdk(request: pytest.FixtureRequest, server: Server) -> Any:
    return FLAVORS[request.param]


@pytest.fixture
async def box(sdk: Any) -> AsyncIterator[Any]:
    async with await sdk.Sandbox.create("tiny") as sb:
        yield sb


async def test_lines_of_both_streams(box: Any) -> None:
    async with await box.exec("sh", "-c", "for i in 1 2 3; do echo $i; done; echo oops >&2; printf end") as process:
        assert [line async for line in process.stdout] == ["1\n", "2\n", "3\n", "end"]
        assert await process.stderr.read() == "oops\n"
        assert await process.wait() == 0
        assert process.returncode == 0


async def test_bytes_when_asked_for(box: Any) -> None:
    async with await box.exec("sh", "-c", r"printf 'a\377\nb'", text=False) as process:
        assert await process.stdout.readlines() == [b"a\xff\n", b"b"]


async def test_a_conversation(box: Any) -> None:
    async with await box.exec("cat") as cat:
        for number in range(20):
            await cat.stdin.write(f"line {number}\n")
            assert await cat.stdout.readline() == f"line {number}\n"
        assert await cat.poll() is None
        await cat.stdin.close()
        assert await cat.stdout.readline() == ""
        assert await cat.wait(timeout=30) == 0
        with pytest.raises(InvalidState):
            await cat.stdin.write("more")


async def test_more_input_and_output_than_fits_anywhere(box: Any) -> None:
    data = os.urandom(6_000_000)
    async with await box.exec("sh", "-c", "tee /dev/stderr", text=False) as process:
        out, err = await process.communicate(data)
        assert out == data
        assert err == data


async def test_a_terminal(box: Any) -> None:
    async with await box.exec("sh", pty=(30, 90)) as shell:
        await shell.stdin.write("stty size; tty; exit 4\n")
        text = await shell.stdout.read()
        assert "30 90" in text
        assert "/dev/pts/" in text
        assert await shell.wait() == 4


async def test_a_terminal_is_resized_and_interrupted(box: Any) -> None:
    async with await box.exec("sh", "-c", "trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done", pty=True) as shell:
        assert await shell.stdout.readline() == "ready\r\n"
        await shell.resize(11, 44)
        assert await shell.stdout.readline() == "11 44\r\n"
        assert await shell.wait(timeout=30) == 3
    async with await box.exec("sh", "-c", "echo ready; sleep 600", pty=True) as sleeper:
        await sleeper.stdout.readline()
        await sleeper.stdin.write(b"\x03")
        assert await sleeper.wait(timeout=30) == 130


async def test_signals_and_kill(box: Any) -> None:
    async with await box.exec("sh", "-c", "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done") as process:
        await process.stdout.readline()
        await process.terminate()
        assert await process.stdout.readline() == "got\n"
        assert await process.wait(timeout=30) == 5
    async with await box.exec("sleep", "600") as process:
        await process.kill()
        assert await process.wait(timeout=30) == 137
        await process.kill()  # nothing is there any more, and that is no error


async def test_waiting_has_an_end_and_the_process_goes_on(box: Any) -> None:
    async with await box.exec("sleep", "600") as process:
        with pytest.raises(TimeoutError):
            await process.wait(timeout=0.1)
        assert await process.poll() is None


async def test_without_input_it_is_empty(box: Any) -> None:
    async with await box.exec("cat", stdin=False) as process:
        assert await process.wait(timeout=30) == 0
        with pytest.raises(InvalidState):
            await process.stdin.write("x")


async def test_it_outlives_its_handle_and_is_found_again(box: Any) -> None:
    first = await box.exec("sh", "-c", "echo one; read x; echo two $x", tag="mine")
    assert await first.stdout.readline() == "one\n"
    await first.aclose()
    assert [one.tag for one in await box.processes() if one.id == first.id] == ["mine"]
    async with await box.process(first.id) as again:
        await again.stdin.write("hello\n")
        assert await again.stdout.read() == "one\ntwo hello\n"
        assert await again.wait() == 0
        await again.delete()
    with pytest.raises(NotFound):
        await box.process(first.id)


async def test_both_streams_can_be_read_at_once(box: Any) -> None:
    async with await box.exec("sh", "-c", "for i in $(seq 300); do echo $i; echo $i >&2; done") as process:
        wanted = "".join(f"{i}\n" for i in range(1, 301))
        assert await asyncio.gather(process.stdout.read(), process.stderr.read()) == [wanted, wanted]


async def test_leaving_the_block_kills(box: Any) -> None:
    async with await box.exec("sleep", "654"):
        pass
    assert "654" not in (await box.run("ps -o args")).stdout


# Connections that break


@pytest.fixture
async def cut(sdk: Any, server: Server) -> AsyncIterator[tuple[Cutter, Any]]:
    """A client whose connections go through a gate that cuts them."""
    async with Cutter(server.port) as cutter, sdk.Client(cutter.url, server.key) as client, await client.sandboxes.create("tiny") as sb:
        yield cutter, sb
        cutter.every = None


async def test_output_comes_whole_over_connections_that_break(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    async with await sb.exec("sh", "-c", "seq 300000; seq 300000 >&2") as process:
        cutter.every = 400_000
        out, err = await asyncio.gather(process.stdout.read(), process.stderr.read())
    wanted = "".join(f"{i}\n" for i in range(1, 300_001))
    assert out == wanted
    assert err == wanted
    assert cutter.cuts > 3


async def test_a_run_goes_on_over_connections_that_break(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    heard: list[str] = []

    def hear(text: str) -> None:
        heard.append(text)
        if len(heard) in (1, 3):
            cutter.cut()

    result = await sb.run("for i in 1 2 3 4 5; do echo $i; sleep 0.2; done", on_stdout=hear)
    assert (result.stdout, result.exit_code) == ("1\n2\n3\n4\n5\n", 0)
    assert cutter.cuts == 2


async def test_input_arrives_once_over_connections_that_break(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    data = os.urandom(1_500_000)
    async with await sb.exec("sha256sum") as process:
        cutter.every = 200_000
        await process.stdin.write(data)
        await process.stdin.close()
        cutter.every = None
        import hashlib

        assert (await process.stdout.read()).split()[0] == hashlib.sha256(data).hexdigest()
    assert cutter.cuts > 3


async def test_a_conversation_goes_on_over_connections_that_break(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    async with await sb.exec("cat") as cat:
        for number in range(60):
            if number % 20 == 10:
                cutter.cut()
            await cat.stdin.write(f"{number}\n")
            assert await cat.stdout.readline() == f"{number}\n"
    assert cutter.cuts >= 3


async def test_events_go_on_over_connections_that_break(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    seen: list[int] = []
    known = [event.seq async for event in sb.events()]
    async for event in sb.events(follow=True):
        seen.append(event.seq)
        cutter.cut()
        if len(seen) == len(known):
            break
    assert seen == known


async def test_a_command_whose_first_answer_is_lost_is_taken_up_again(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    cutter.swallow = b'"pr-'
    result = await sb.run("echo begun >> /root/begun; echo begun; sleep 1; echo ended")
    assert (result.stdout, result.exit_code) == ("begun\nended\n", 0)
    assert cutter.cuts >= 1
    assert await sb.files.read("/root/begun") == b"begun\n"


async def test_one_command_makes_one_process_when_the_answer_is_lost(cut: tuple[Cutter, Any]) -> None:
    cutter, sb = cut
    cutter.swallow = b'"pr-'  # the answer that would tell the process' id
    process = await sb.exec("sh", "-c", "echo x >> /root/count")
    assert cutter.cuts >= 1
    await process.wait(timeout=30)
    assert (await sb.files.read("/root/count")) == b"x\n"
    await process.aclose()


def test_a_client_that_does_not_come_back_has_its_command_ended(server: Server) -> None:
    api = Api(server)
    box = api.create()["id"]
    path = f"/v1/sandboxes/{box}/processes"
    how = {"params": {"kill_on_disconnect": "true"}, "json": {"command": "echo here; sleep 543"}}
    with api.events("POST", path, headers={"Idempotency-Key": box}, **how) as events:
        process = f"{path}/{data(next(events))['id']}"
    with api.events("GET", f"{process}/output", params={"kill_on_disconnect": "true"}) as events:
        assert next(events).name == "output"
    ended = api.ok("GET", f"{process}/wait", params={"timeout": 60})
    assert (ended["running"], ended["signal"]) == (False, 9)
    api.delete(box)
    api.close()
