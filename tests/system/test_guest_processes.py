"""Processes of a guest, through the real agent on the other end of a real link: started, fed, followed, killed, lost, and adopted by the next server."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from corral.errors import Conflict, CorralError, FileNotFound, InvalidArgument, InvalidState, NotADirectory, NotExecutable, NotFound, SandboxEnded, TooLarge
from corral.ids import new_id
from corral.node.process import Chunk
from corral.node.processes import Bounds, ProcessBook
from corral.node.start import Defaults
from corral.schema.process import Process, ProcessStart, Signal, Stream, Terminal
from harness.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path)
    yield agent
    agent.end()


def sh(command: str, **more: Any) -> ProcessStart:
    return ProcessStart(command=command, **more)


async def collect(book: ProcessBook, id: str, stdout: int = 0, stderr: int = 0, *, follow: bool = True) -> tuple[bytes, bytes, Process]:
    """Both streams and the process; offsets must be without gap."""
    at = {Stream.STDOUT: stdout, Stream.STDERR: stderr}
    data = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
    async for item in book.raw_output(id, stdout, stderr, follow=follow):
        if isinstance(item, Process):
            return bytes(data[Stream.STDOUT]), bytes(data[Stream.STDERR]), item
        assert isinstance(item, Chunk)
        assert item.offset == at[item.stream] + item.dropped
        at[item.stream] = item.offset + len(item.data)
        data[item.stream] += item.data
    raise AssertionError("the output ended without its process")


async def run(book: ProcessBook, command: str, **more: Any) -> tuple[bytes, bytes, Process]:
    return await collect(book, (await book.start(sh(command, **more))).id)


async def until(book: ProcessBook, id: str, text: bytes) -> None:
    """Until the process has printed this."""
    seen = b""
    async for item in book.raw_output(id):
        assert isinstance(item, Chunk), seen
        seen += item.data
        if text in seen:
            return


# ── what a process does ──


async def test_streams_are_apart_and_the_status_is_true(agent: Agent) -> None:
    async with agent.guest() as guest:
        out, err, process = await run(guest.processes, "echo out; echo err >&2; exit 7")
        assert (out, err, process.exit_code, process.signal, process.running) == (b"out\n", b"err\n", 7, None, False)
        assert (process.stdout_offset, process.stderr_offset) == (4, 4)
        assert process.duration is not None
        assert 0 < process.duration < 30
        _, _, killed = await run(guest.processes, "kill -9 $$")
        assert (killed.exit_code, killed.signal, killed.timed_out) == (137, 9, False)


async def test_environment_directory_and_arguments(agent: Agent) -> None:
    async with agent.guest(defaults=Defaults(workdir="/usr")) as guest:
        book = guest.processes
        assert (await run(book, 'printf %s "$A|$B"; pwd', env={"A": "1=2", "B": "ü"}, cwd="lib"))[0] == "1=2|ü/usr/lib\n".encode()
        odd = ProcessStart.model_construct(argv=["printf", "%s", os.fsdecode(b"\xff\xfe 'x'\n")])
        started = await book.start(odd)
        assert (await collect(book, started.id))[0] == b"\xff\xfe 'x'\n"
        assert started.argv[2] == "\ufffd\ufffd 'x'\n"
        assert (await run(book, "id -u; id -g", user="65534:100"))[0] == b"65534\n100\n"


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        ({"argv": ["no-such-program"]}, NotExecutable, "was not found"),
        ({"argv": ["/no/such/program"]}, NotExecutable, "was not found"),
        ({"argv": ["/etc/passwd"]}, NotExecutable, "may not be executed"),
        ({"argv": ["/tmp"]}, NotExecutable, "/tmp"),
        ({"argv": ["true"], "cwd": "/no/such/place"}, FileNotFound, "working directory `/no/such/place` does not exist"),
        ({"argv": ["true"], "cwd": "/etc/passwd"}, NotADirectory, "is not a directory"),
        ({"argv": ["true"], "user": "no-such-user"}, InvalidArgument, "no-such-user"),
        ({"argv": ["true", "x" * (1 << 20)]}, TooLarge, "bytes"),
    ],
)
async def test_what_cannot_be_started_says_why_and_leaves_nothing(agent: Agent, request_: dict[str, Any], error: type[CorralError], words: str) -> None:
    async with agent.guest() as guest:
        with pytest.raises(error, match=words):
            await guest.processes.start(ProcessStart(**request_))
        assert guest.processes.list() == []
        assert guest.processes.running == 0
        assert (await run(guest.processes, "echo fine"))[0] == b"fine\n"


async def test_a_file_that_is_no_program(agent: Agent, tmp_path: Path) -> None:
    script = tmp_path / "data"
    script.write_bytes(b"\x00\x01 not a program")
    script.chmod(0o755)
    async with agent.guest() as guest:
        with pytest.raises(NotExecutable, match="form"):
            await guest.processes.start(ProcessStart(argv=[str(script)]))


async def test_standard_input_takes_each_byte_once(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(sh("cat", stdin=True))).id
        assert await book.write_stdin(id, b"hello ", offset=0) == 6
        assert await book.write_stdin(id, b"hello ", offset=0) == 6
        assert await book.write_stdin(id, b"lo world", offset=3) == 11
        with pytest.raises(Conflict, match="gap"):
            await book.write_stdin(id, b"!", offset=100)
        assert book.get(id).stdin_offset == 11
        assert await book.write_stdin(id, b"", eof=True) == 11
        with pytest.raises(InvalidState, match="closed"):
            await book.write_stdin(id, b"more")
        out, _, process = await collect(book, id)
        assert (out, process.exit_code, process.stdin_offset) == (b"hello world", 0, 11)
        with pytest.raises(InvalidState, match="ended"):
            await book.write_stdin(id, b"more")


async def test_standard_input_larger_than_every_buffer_comes_back_whole(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        data = os.urandom(5_000_000)
        id = (await book.start(sh("cat", stdin=True))).id
        _, (out, _, process) = await asyncio.gather(book.write_stdin(id, data, eof=True), collect(book, id))
        assert process.exit_code == 0
        assert out == data


async def test_a_writer_stuck_before_a_process_that_does_not_read_is_freed_by_its_end(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(ProcessStart(argv=["sleep", "1000"], stdin=True))).id
        writing = asyncio.create_task(book.write_stdin(id, bytes(3_000_000)))
        await run(book, "true")
        assert not writing.done()
        # Others are not held up meanwhile.
        assert (await run(book, "echo alive"))[0] == b"alive\n"
        await book.signal(id, Signal(signal=9))
        with suppress(InvalidState):  # the guest may swallow the rest before it tells of the end, as a pipe would
            await writing
        await book.wait(id)
        with pytest.raises(InvalidState, match="ended"):
            await book.write_stdin(id, b"x")


async def test_no_standard_input_is_an_end_of_file(agent: Agent) -> None:
    async with agent.guest() as guest:
        out, _, process = await run(guest.processes, "cat; echo $?")
        assert out == b"0\n"
        with pytest.raises(InvalidState):
            await guest.processes.write_stdin(process.id, b"x")
        id = (await guest.processes.start(sh("sleep 1000"))).id
        with pytest.raises(InvalidState, match="without standard input"):
            await guest.processes.write_stdin(id, b"x")
        with pytest.raises(InvalidState, match="no terminal"):
            await guest.processes.resize(id, Terminal(rows=2, cols=3))
        await guest.processes.forget(id)


async def test_a_terminal(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(ProcessStart(argv=["sh"], pty=Terminal(rows=11, cols=22), env={"PS1": "$ "}))).id
        await book.write_stdin(id, b"stty size\n")
        await until(book, id, b"11 22")
        await book.resize(id, Terminal(rows=33, cols=44))
        await book.write_stdin(id, b"stty size; tty\n")
        await until(book, id, b"33 44")
        await until(book, id, b"/dev/pts/")
        await book.write_stdin(id, b"exit 3\n")
        process = await book.wait(id)
        assert (process.exit_code, process.pty, process.stderr_offset) == (3, True, 0)


async def test_signals_reach_the_process_the_group_or_the_tree(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(sh("trap 'echo got it; exit 5' USR1; echo up; while :; do sleep 0.05; done"))).id
        await until(book, id, b"up")
        await book.signal(id, Signal(signal=signal.SIGUSR1, to="process"))
        out, _, process = await collect(book, id)
        assert (out, process.exit_code) == (b"up\ngot it\n", 5)
        with pytest.raises(InvalidState):
            await book.signal(id, Signal(signal=9))
        id = (await book.start(sh("sleep 1000 & echo $!; wait"))).id
        await until(book, id, b"\n")
        child = int((await collect(book, id, follow=False))[0])
        await book.signal(id, Signal(signal=9, to="tree"))
        assert (await book.wait(id)).exit_code == 137
        await gone(child)


async def gone(pid: int) -> None:
    """Until a process of the machine is dead."""
    async with asyncio.timeout(10):
        while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            await asyncio.sleep(0.01)


async def test_a_timeout_kills_the_tree_and_keeps_the_output(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        out, _, process = await run(book, "sleep 1000 & echo $!; wait", timeout=0.3)
        assert (process.timed_out, process.exit_code) == (True, 137)
        await gone(int(out))
        _, _, quick = await run(book, "exit 4", timeout=30)
        assert (quick.timed_out, quick.exit_code) == (False, 4)


async def test_what_a_daemon_writes_later_is_kept_but_nobody_waits_for_it(agent: Agent, tmp_path: Path) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        go = tmp_path / "go"
        out, _, process = await run(book, f"(while [ ! -e {go} ]; do sleep 0.01; done; echo later) & echo now")
        assert (out, process.exit_code, process.running) == (b"now\n", 0, False)
        assert book.running == 0
        go.touch()
        async with asyncio.timeout(10):
            while (await collect(book, process.id, follow=False))[0] != b"now\nlater\n":
                await asyncio.sleep(0.01)
        assert (await collect(book, process.id))[0] == b"now\n"


async def test_readers_at_any_offset_at_any_time_get_the_same(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(sh("seq 200000; seq 1000 >&2"))).id
        whole = b"".join(b"%d\n" % n for n in range(1, 200_001))
        readers = [collect(book, id), collect(book, id, 1_000_000, 10), collect(book, id, len(whole))]
        (out, err, _), (part, err_part, _), (none, _, _) = await asyncio.gather(*readers)
        assert out == whole
        assert part == whole[1_000_000:]
        assert err_part == err[10:]
        assert none == b""
        assert await collect(book, id, 5, 5) == (whole[5:], err[5:], book.get(id))


async def test_a_flood_is_bounded_and_counted(agent: Agent) -> None:
    async with agent.guest(bounds=Bounds(stream=1 << 20)) as guest:
        book = guest.processes
        id = (await book.start(sh("seq 2000000"))).id
        process = await book.wait(id)
        whole = b"".join(b"%d\n" % n for n in range(1, 2_000_001))
        assert process.stdout_offset == len(whole)
        assert len(whole) - (1 << 20) - 300_000 < process.stdout_start < len(whole) - (1 << 19)
        out, _, _ = await collect(book, id)
        assert out == whole[process.stdout_start :]
        kept = sum(file.stat().st_size for file in (agent.spool / id).iterdir())
        assert kept == len(out)


async def test_all_output_of_a_sandbox_together_is_bounded(agent: Agent) -> None:
    async with agent.guest(bounds=Bounds(stream=1 << 20, sandbox=3 << 20)) as guest:
        book = guest.processes
        ids = [(await run(book, "head -c 900000 /dev/zero"))[2].id for _ in range(8)]
        kept = [len((await collect(book, id))[0]) for id in ids]
        assert sum(kept) <= (3 << 20) + 300_000
        assert kept[-2:] == [900_000, 900_000]
        assert kept[0] == 0
        assert book.get(ids[0]).stdout_offset == book.get(ids[0]).stdout_start == 900_000


async def test_only_the_newest_finished_processes_are_kept(agent: Agent) -> None:
    async with agent.guest(bounds=Bounds(finished=3)) as guest:
        book = guest.processes
        ids = [(await run(book, "echo hello"))[2].id for _ in range(6)]
        assert [process.id for process in book.list()] == ids[-3:]
        with pytest.raises(NotFound):
            book.get(ids[0])
        assert sorted(file.name for file in (agent.spool).iterdir()) == sorted([*ids[-3:], "processes.jsonl"])


async def test_a_start_with_an_id_happens_once(agent: Agent, tmp_path: Path) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = new_id("pr")
        request = sh(f"echo x >> {tmp_path}/count; sleep 1000")
        one, two = await asyncio.gather(book.start(request, id=id), book.start(request, id=id))
        three = await book.start(request, id=id)
        assert one.pid == two.pid == three.pid is not None
        assert len(book.list()) == 1
        await book.forget(id)
        with pytest.raises(NotFound):
            book.get(id)
        with pytest.raises(InvalidArgument):
            await book.start(request, id="../../etc")


async def test_forgetting_kills_the_tree_and_ends_every_reader(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(sh("echo up; sleep 1000 & wait"))).id
        await until(book, id, b"up")
        reader, waiter = asyncio.create_task(collect(book, id)), asyncio.create_task(book.wait(id))
        await asyncio.sleep(0)
        await book.forget(id)
        assert (await reader)[2].exit_code == 137
        assert (await waiter).exit_code == 137
        assert not (agent.spool / id).exists()
        with pytest.raises(NotFound):
            await book.forget(id)


async def test_a_cancelled_start_leaves_no_process(agent: Agent, tmp_path: Path) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        for turns in range(6):
            mark = tmp_path / f"mark{turns}"
            starting = asyncio.create_task(book.start(sh(f"echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 1000")))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert book.list() == []
        assert (await run(book, "true"))[2].exit_code == 0
        for mark in tmp_path.glob("mark?"):
            await gone(int(mark.read_text()))


async def test_waiting_has_a_time_limit(agent: Agent) -> None:
    async with agent.guest() as guest:
        id = (await guest.processes.start(sh("sleep 1000"))).id
        assert (await guest.processes.wait(id, 0.05)).running
        await guest.processes.forget(id)


async def test_use_and_output_are_activity_and_events_are_told(agent: Agent) -> None:
    told: list[tuple[str, Any]] = []
    uses = 0

    def used() -> None:
        nonlocal uses
        uses += 1

    async with agent.guest(on_event=lambda kind, data: told.append((kind, data["process"])), activity=used) as guest:
        before = uses
        _, _, process = await run(guest.processes, "echo hi")
        assert uses > before
        assert [kind for kind, id in told if id == process.id] == ["process.started", "process.exited"]


async def test_many_processes_at_once(agent: Agent) -> None:
    async with agent.guest() as guest:
        done = await asyncio.gather(*(run(guest.processes, f"echo {n}; exit {n % 50}") for n in range(60)))
        assert [(out, process.exit_code) for out, _, process in done] == [(b"%d\n" % n, n % 50) for n in range(60)]


# ── ends ──


async def test_a_sandbox_that_ends_loses_its_processes_but_not_their_output(agent: Agent) -> None:
    async with agent.guest() as guest:
        book = guest.processes
        id = (await book.start(sh("echo before; sleep 1000", stdin=True))).id
        ended = (await run(book, "echo done"))[2]
        await until(book, id, b"before")
        child = book.get(id).pid
        reader = asyncio.create_task(collect(book, id))
        await asyncio.sleep(0)
        agent.process.kill()
        out, _, process = await reader
        assert (out, process.lost, process.running, process.exit_code) == (b"before\n", True, False, None)
        assert book.get(ended.id).exit_code == 0
        for use in (book.start(sh("true")), book.write_stdin(id, b"x"), book.signal(id, Signal(signal=9))):
            with pytest.raises((SandboxEnded, InvalidState)):
                await use
        assert child is not None
        os.kill(child, signal.SIGKILL)
    stopped = ProcessBook(agent.spool, "sb-test")
    assert stopped.get(id).lost
    assert (await collect(stopped, id))[0] == b"before\n"
    assert (await collect(stopped, ended.id))[0] == b"done\n"
    with pytest.raises(InvalidState, match="not running"):
        await stopped.start(sh("true"))


async def test_the_next_server_finds_everything(agent: Agent, tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with agent.guest() as guest:
        book = guest.processes
        done = (await run(book, "echo finished; exit 3"))[2]
        forgotten = (await run(book, "true"))[2].id
        await book.forget(forgotten)
        alive = (await book.start(sh(f"echo one; read line; echo $line; while [ ! -e {go} ]; do sleep 0.01; done; echo two; exit 9", stdin=True))).id
        await book.write_stdin(alive, b"li")
        ending = (await book.start(sh(f"while [ ! -e {go} ]; do sleep 0.01; done; seq 1000; exit 6"))).id
        late = (await book.start(sh("sleep 1000", timeout=1.0))).id
        fed = (await book.start(sh(f"cat; while [ ! -e {go} ]; do sleep 0.01; done; exit 2", stdin=True))).id
        await book.write_stdin(fed, b"all", eof=True)
        await until(book, alive, b"one")
    go.touch()
    await gone(book.get(ending).pid or 0)
    async with agent.guest() as guest:
        book = guest.processes
        assert [process.id for process in book.list()] == [done.id, alive, ending, late, fed]
        assert book.get(done.id).model_dump() == done.model_dump()
        assert book.get(alive).stdin_offset == 2
        await book.write_stdin(alive, b"line\n", offset=0)
        out, _, process = await collect(book, alive)
        assert (out, process.exit_code) == (b"one\nline\ntwo\n", 9)
        out, _, process = await collect(book, ending)
        assert (out, process.exit_code) == (b"".join(b"%d\n" % n for n in range(1, 1001)), 6)
        assert (await collect(book, fed))[0] == b"all"
        process = await book.wait(late)
        assert (process.timed_out, process.exit_code) == (True, 137)
        assert (await run(book, "echo new"))[0] == b"new\n"


SERVER = """
import asyncio, os, socket, sys
from pathlib import Path
from corral.node.guest import Guest
from corral.node.link import Link
from corral.node.processes import Bounds
from corral.schema.process import ProcessStart

async def main() -> None:
    link = Link(socket.socket(fileno=int(sys.argv[1])))
    guest = Guest(link, Path(sys.argv[2]), "sb-test", bounds=Bounds(stream=256 << 20))
    await guest.hello()
    for command in sys.argv[3:]:
        print((await guest.processes.start(ProcessStart(command=command))).id, flush=True)
    print("up", flush=True)
    while True:
        await asyncio.sleep(0.005)
        print("tick", flush=True)

asyncio.run(main())
"""


def same(one: bytes, other: bytes) -> bool:
    return one == other


def serve(agent: Agent, *commands: str) -> subprocess.Popen[bytes]:
    """A server in a process of its own, which can be killed."""
    fd = agent.socket.fileno()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    argv = [sys.executable, "-c", SERVER, str(fd), str(agent.spool), *commands]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, pass_fds=[fd], env=env)


async def test_servers_killed_in_the_middle_of_everything_lose_and_double_nothing(agent: Agent) -> None:
    commands = ["seq 1000000", "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exit 5", "head -c 30000000 /dev/zero | tr '\\0' x"]
    ids: list[str] = []
    for round_ in range(6):
        with serve(agent, *(commands if round_ == 0 else [])) as server:
            assert server.stdout is not None
            while (line := server.stdout.readline()) != b"up\n":
                ids.append(line.decode().strip())
            for _ in range(round_ * 2):
                server.stdout.readline()
            server.kill()
    assert len(ids) == 3
    async with agent.guest(bounds=Bounds(stream=256 << 20)) as guest:
        numbers, loop, flood = [await collect(guest.processes, id) for id in ids]
        # Compared outside of assert: nobody wants to read the difference.
        assert same(numbers[0], b"".join(b"%d\n" % n for n in range(1, 1_000_001)))
        assert loop[0] == b"".join(b"%d\n" % n for n in range(3000))
        assert loop[2].exit_code == 5
        assert same(flood[0], b"x" * 30_000_000)
        assert not any(process.lost or process.running for _, _, process in (numbers, loop, flood))
