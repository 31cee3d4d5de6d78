"""SSH as the server has it: it listens, and starts the process that serves when the first client comes. The process outlives the server; it asks the server who may come in."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from corral.errors import CorralError, SetupError
from corral.node.companion import LISTENER, Companion
from corral.node.holder_client import HolderClient
from corral.places import Places
from corral.ssh import host_key

VERSION = 1
RETRY = (0.5, 30.0)
"""Seconds before it is started again when it ends at once: the first time, and at most."""
QUESTION = 64 << 10
"""Bytes of a question at most."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Login:
    """Who knocks: with a password, or with a public key (`ssh-ed25519 AAAA…`) whose private half it has shown, or is about to show. With a `credential` it tells that somebody came in."""

    sandbox: str
    password: str | None = None
    public_key: str | None = None
    credential: str | None = None


@dataclass(frozen=True)
class Granted:
    """What a login opens, and the credential by which the process acts for whoever it is."""

    sandbox: str
    project: str
    credential: str


class Knowledge(Protocol):
    """What the server knows, and the process does not."""

    async def admit(self, login: Login) -> Granted | None: ...


@dataclass(frozen=True)
class Door:
    """Where to listen. `fixed`: the port was chosen, and no other will do. `api`: the URL at which the API answers on this machine."""

    host: str
    port: int
    fixed: bool
    api: str


class Keeper:
    """The listener and the process. Lives on the event loop."""

    def __init__(self, places: Places, knowledge: Knowledge) -> None:
        self._places = places
        self._process = Companion(places.ssh_socket, places.ssh_pid, places.logs / "ssh.log")
        self._knowledge = knowledge
        self._holder: HolderClient | None = None
        self._door: Door | None = None
        self._listener: socket.socket | None = None
        self._answers: asyncio.Server | None = None
        self._task: asyncio.Task[None] | None = None
        self._came = asyncio.Event()
        self.port = 0
        self.host_key = ""

    async def open(self, holder: HolderClient, door: Door) -> None:
        """Listen, or leave that to the process of an earlier server. Raises `SetupError` when the chosen port is taken."""
        self._holder, self._door = holder, door
        self.host_key = host_key.ensure(self._key)
        path = self._process.at
        path.unlink(missing_ok=True)
        self._answers = await asyncio.start_unix_server(self._answer, path, limit=QUESTION)
        path.chmod(0o600)
        said = self._process.said()
        pid, self.port = self._process.running(), int(said) if said.isdecimal() else 0
        if pid and not self._fits(pid):
            await self._process.end(holder)
            pid = 0
        if not pid:
            self._listener = self._listen(self.port or door.port, fixed=door.fixed)
            self.port = self._listener.getsockname()[1]
        self._task = asyncio.create_task(self._keep(pid), name="ssh")

    async def close(self) -> None:
        """Leave it to the next server; connections go on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._answers is not None:
            self._answers.close()
            self._answers = None
        self._stop_listening()

    async def shutdown(self, holder: HolderClient) -> None:
        """End it, also that of an earlier server."""
        await self.close()
        await self._process.remove(holder)

    # The process

    @property
    def _key(self) -> Path:
        return self._places.keys / "ssh_host_ed25519_key"

    async def _keep(self, pid: int) -> None:
        assert self._holder is not None
        loop = asyncio.get_running_loop()
        delay = RETRY[0]
        if pid:
            await self._holder.watch([pid])
        while True:
            try:
                if pid:
                    began = loop.time()
                    # Shielded: whoever ends the process waits for the same future after this task was cancelled.
                    await asyncio.shield(self._holder.exit_of(pid))
                    await self._holder.forget([pid])
                    pid = 0
                    delay = RETRY[0] if loop.time() - began > RETRY[1] else min(2 * delay, RETRY[1])
                    await asyncio.sleep(0 if delay == RETRY[0] else delay)
                if self._listener is None:
                    # Of a process that an earlier server had started, and its listener with it.
                    self._listener = self._listen(self.port, fixed=True)
                await self._client()
                pid = await self._start(self._listener)
            except (CorralError, OSError) as error:
                log.error("SSH can't be served", error=str(error), retry_in=delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY[1])

    async def _client(self) -> None:
        """Until somebody wants to come in."""
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        self._came.clear()
        loop.add_reader(self._listener, self._came.set)
        try:
            await self._came.wait()
        finally:
            loop.remove_reader(self._listener)

    async def _start(self, listener: socket.socket) -> int:
        assert self._holder is not None
        env = {"PATH": os.environ.get("PATH", os.defpath)}
        return await self._process.start(self._holder, self._argv(), listener, env=env, say=str(self.port))

    def _argv(self) -> list[str]:
        assert self._door is not None
        where = ["--listener", str(LISTENER), "--socket", str(self._process.at), "--host-key", str(self._key), "--api", self._door.api]
        return [sys.executable, "-I", "-m", "corral.ssh.process", "--version", str(VERSION), "--host", self._door.host, *where]

    def _fits(self, pid: int) -> bool:
        """Whether it is what this server would have started."""
        assert self._door is not None
        wanted = self._door.port in (0, self.port) or not self._door.fixed
        return wanted and self._process.runs(pid, self._argv())

    def _listen(self, port: int, *, fixed: bool) -> socket.socket:
        assert self._door is not None
        host = self._door.host
        try:
            return _bound(host, port)
        except OSError as error:
            if fixed:
                raise SetupError(
                    f"can't listen on {host}:{port} for SSH: {error.strerror}", hint="choose another one with --ssh-port, or say --no-ssh"
                ) from None
            listener = _bound(host, 0)
            log.warning("the usual port of SSH is taken", port=port, instead=listener.getsockname()[1])
            return listener

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # What it asks

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question, one answer, each a line of JSON."""
        try:
            peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            if struct.unpack("3i", peer)[1] not in (0, os.geteuid()):
                return
            login = Login(**json.loads(await reader.readline()))
            granted = await self._knowledge.admit(login)
            writer.write(json.dumps(None if granted is None else vars(granted)).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, ValueError, TypeError) as error:
            log.warning("a question of the SSH process could not be answered", error=type(error).__name__)
        finally:
            writer.close()


def _bound(host: str, port: int) -> socket.socket:
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
        listener.settimeout(0)
    except BaseException:
        listener.close()
        raise
    return listener
