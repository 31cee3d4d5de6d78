"""The server's end of the holder: starts it, speaks its protocol, tells of exits. See `holder.py` for the messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corral.errors import PlatformError, SetupError, Unavailable
from corral.node import holder
from corral.spawn import ProgramFailed, run_async

CALL_TIMEOUT = 20.0
"""Seconds a request may take. Only `spawn` takes more than a fraction of a millisecond."""


class HolderError(PlatformError):
    """The holder refused a request."""

    code = "holder"


class HolderLost(Unavailable):
    """The holder went away; sentries live on, but their exits are no longer told."""


@dataclass(frozen=True)
class Spawn:
    """A program to be started by the holder. `fds` maps its descriptor numbers to ours; `join` are cgroup.procs files it enters before exec."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: str = "/"
    fds: Mapping[int, int] = field(default_factory=dict[int, int])
    join: Sequence[Path] = ()
    rlimits: Mapping[str, int] = field(default_factory=dict[str, int])
    oom_score_adj: int = 0


@dataclass(frozen=True)
class Held:
    """What a holder has: names of descriptors, its children, exits nobody has acknowledged."""

    names: frozenset[str]
    children: frozenset[int]
    exits: Mapping[int, int | None]


async def start(path: Path, log: Path) -> None:
    """Start a holder listening at `path`, unless one is there. Returns when it can be connected to."""
    argv = [sys.executable, "-I", "-S", holder.__file__, str(path), str(log)]
    # PYTHONDONTWRITEBYTECODE and the like must not come along: the holder outlives this server's environment.
    done = await run_async(argv, timeout=20, env={"PATH": os.environ.get("PATH", os.defpath)})
    if done.code == 3:
        raise ProgramFailed(f"another holder has the lock of {path} but does not answer", hint=f"see {log}, then end the process that has {path}.lock open")
    done.check()


class HolderClient:
    """One connection to the holder; the only one it accepts. Lives on the event loop.

    `on_lost` is called when the holder goes away by itself; `connect` may then be called again, for a new one.
    """

    def __init__(self, *, on_lost: Callable[[], None]) -> None:
        self._on_lost = on_lost
        self._exits: dict[int, asyncio.Future[int | None]] = {}
        self._socket: socket.socket | None = None
        self._calls: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._number = 0
        self._usable = asyncio.Event()
        """Not set while a lost holder is being replaced: calls wait for the new one."""
        self.pid = 0

    async def connect(self, path: Path) -> None:
        """Raises `ConnectionError` when no holder listens, `SetupError` when another server has it."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await loop.sock_connect(connection, str(path))
                data = await loop.sock_recv(connection, holder.PACKET)
        except BaseException:
            connection.close()
            raise
        if not data:
            connection.close()
            raise ConnectionResetError(f"the holder at {path} closed the connection")
        greeting = json.loads(data)
        if "busy" in greeting:
            connection.close()
            raise SetupError(f"another server (process {greeting['busy']}) runs on this home", hint="stop it with `corral down`, or use another CORRAL_HOME")
        if greeting["holder"] != holder.VERSION:
            connection.close()
            raise SetupError(
                f"the running holder (process {greeting['pid']}) speaks version {greeting['holder']}, this server {holder.VERSION}",
                hint="stop every sandbox and the holder with the older version's `corral down --all`",
            )
        self._socket, self.pid = connection, int(greeting["pid"])
        loop.add_reader(connection, self._readable)
        self._usable.set()
        for pid, status in (await self.list()).exits.items():
            self._exited(pid, status)
        # After the loss of an earlier holder: whoever waits for an end is told of it by this one.
        await self.watch([pid for pid, end in self._exits.items() if not end.done()])

    def exit_of(self, pid: int) -> asyncio.Future[int | None]:
        """The end of a spawned or watched process: its wait status, or None when it was no child of this holder.

        It is remembered, here and by the holder, until `forget`: an exit that a crashing server has not dealt with is told to the next.
        """
        if pid not in self._exits:
            self._exits[pid] = asyncio.get_running_loop().create_future()
        return self._exits[pid]

    def close(self) -> None:
        """Leave the holder to the next server."""
        self._drop(HolderLost("the connection to the holder was closed"))

    async def spawn(self, spawn: Spawn) -> int:
        """Start a program; returns its pid once it has been executed. Its exit will be told."""
        message = {
            "op": "spawn",
            "argv": list(spawn.argv),
            "env": dict(spawn.env),
            "cwd": spawn.cwd,
            "fds": list(spawn.fds),
            "join": [str(path) for path in spawn.join],
            "rlimits": dict(spawn.rlimits),
            "oom": spawn.oom_score_adj,
        }
        answer, _ = await self._call(message, list(spawn.fds.values()))
        return int(answer["pid"])

    async def keep(self, name: str, fds: Sequence[int]) -> None:
        """Have the holder keep copies of descriptors under a name."""
        await self._call({"op": "keep", "name": name}, list(fds))

    async def take(self, name: str) -> list[int]:
        """Copies of the descriptors kept under a name, in the order they were given."""
        _, fds = await self._call({"op": "take", "name": name})
        return fds

    async def drop(self, names: Iterable[str]) -> None:
        # A holder that went away has dropped everything.
        with contextlib.suppress(HolderLost):
            await self._call({"op": "drop", "names": list(names)})

    async def watch(self, pids: Iterable[int], *, fresh: bool = False) -> None:
        """Have the ends of these processes told; of one that is gone already without a trace the end is known at once.

        `fresh`: they were started just now, so an end known under the same number was another process'.
        """
        pids = list(pids)
        for pid in pids:
            if fresh:
                self._exits.pop(pid, None)
            # From now on somebody waits, so that the next holder is told to watch it too.
            self.exit_of(pid)
        answer, _ = await self._call({"op": "watch", "pids": pids})
        for pid in answer["gone"]:
            self._exited(pid, None)

    async def forget(self, pids: Iterable[int]) -> None:
        """These exits have been dealt with."""
        pids = list(pids)
        for pid in pids:
            self._exits.pop(pid, None)
        with contextlib.suppress(HolderLost):
            await self._call({"op": "forget", "pids": pids})

    async def kill(self, pid: int, number: int) -> None:
        await self._call({"op": "kill", "pid": pid, "signal": number})

    async def list(self) -> Held:
        answer, _ = await self._call({"op": "list"})
        exits = {int(pid): status for pid, status in answer["exits"].items()}
        return Held(frozenset(answer["held"]), frozenset(answer["children"]), exits)

    async def shutdown(self) -> None:
        """Have the holder kill all its children and leave; returns when it has."""
        gone = os.pidfd_open(self.pid)
        self._on_lost = lambda: None
        try:
            await self._call({"op": "shutdown"})
            await _readable(gone, timeout=CALL_TIMEOUT)
        finally:
            os.close(gone)
            self.close()

    async def _call(self, message: dict[str, Any], fds: list[int] | None = None) -> tuple[dict[str, Any], list[int]]:
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._usable.wait()
        except TimeoutError:
            raise HolderLost("there is no holder") from None
        self._number += 1
        n = self._number
        data = json.dumps({"n": n, **message}).encode()
        if len(data) > holder.PACKET:
            raise HolderError(f"a request of {len(data)} bytes is more than the holder takes")
        # Own copies, since the caller may close its descriptors while a full socket makes the message wait.
        self._unsent.append((data, [os.dup(fd) for fd in fds or []]))
        future = self._calls[n] = asyncio.get_running_loop().create_future()
        self._flush()
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                answer, received = await future
        except TimeoutError:
            raise HolderLost(f"the holder (process {self.pid}) did not answer {message['op']} within {CALL_TIMEOUT:g} s") from None
        finally:
            self._calls.pop(n, None)
        if "error" in answer:
            raise HolderError(f"the holder could not {message['op']}: {answer['error']}")
        return answer, received

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._unsent and self._socket is not None:
            data, fds = self._unsent[0]
            try:
                socket.send_fds(self._socket, [data], fds)
            except BlockingIOError:
                loop.add_writer(self._socket, self._flush)
                return
            except OSError as error:
                self._lost(error)
                return
            self._unsent.popleft()
            _close(fds)
        if self._socket is not None:
            loop.remove_writer(self._socket)

    def _readable(self) -> None:
        while self._socket is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self._socket, holder.PACKET, holder.FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError as error:
                self._lost(error)
                return
            if not data:
                self._lost(None)
                return
            self._take_in(json.loads(data), fds)

    def _take_in(self, message: dict[str, Any], fds: list[int]) -> None:
        if "exit" in message:
            self._exited(int(message["exit"]), message["status"])
            return
        if "pid" in message:
            # The answer to a spawn comes before the exit: what is known under this number is older.
            self._exits.pop(int(message["pid"]), None)
        future = self._calls.get(message.get("n", 0))
        if future is not None and not future.done():
            future.set_result((message, fds))
        else:
            _close(fds)

    def _exited(self, pid: int, status: int | None) -> None:
        future = self.exit_of(pid)
        if not future.done():
            future.set_result(status)

    def _lost(self, error: OSError | None) -> None:
        if self._socket is not None:
            self._drop(HolderLost(f"the holder (process {self.pid}) went away" + (f": {error}" if error else "")))
            self._on_lost()

    def _drop(self, why: HolderLost) -> None:
        if self._socket is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._socket)
        loop.remove_writer(self._socket)
        self._socket.close()
        self._socket = None
        self._usable.clear()
        for _, fds in self._unsent:
            _close(fds)
        self._unsent.clear()
        for future in self._calls.values():
            if not future.done():
                future.set_exception(why)


async def _readable(fd: int, *, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        async with asyncio.timeout(timeout):
            await ready
    finally:
        loop.remove_reader(fd)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
