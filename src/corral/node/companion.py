"""A process beside the server: started through the holder, so that it outlives the server, and found again by the next one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from corral.errors import PlatformError
from corral.node.holder_client import HolderClient, Spawn

LISTENER = 3
"""The descriptor that it is born with, and listens on."""


class Companion:
    """One kind of them; `at` is the Unix socket that its command line names, by which it is known from every other process. `note` keeps the number of the last one, and `log` what it writes."""

    def __init__(self, at: Path, note: Path, log: Path) -> None:
        self.at = at
        self._note = note
        self.log = log

    def running(self) -> int:
        """The number of the process that was started last; 0: it is gone."""
        try:
            pid = int(self._note.read_text().split()[0])
            return pid if os.fsencode(self.at) in _command(pid) else 0
        except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
            return 0

    def said(self) -> str:
        """What `start` was told to keep; empty when there is nothing."""
        try:
            return self._note.read_text().partition(" ")[2]
        except FileNotFoundError:
            return ""

    def runs(self, pid: int, argv: Sequence[str]) -> bool:
        """Whether it was started with just these words."""
        try:
            return _command(pid) == [os.fsencode(word) for word in argv]
        except (FileNotFoundError, ProcessLookupError):
            return False

    async def start(self, holder: HolderClient, argv: Sequence[str], listener: socket.socket, *, env: Mapping[str, str], say: str = "") -> int:
        """Start one that has `listener` as descriptor 3; returns its number. `say` is kept for `said`."""
        self.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            fds = {0: null, 1: written, 2: written, LISTENER: listener.fileno()}
            pid = await holder.spawn(Spawn(list(argv), env={**env, "PYTHONDONTWRITEBYTECODE": "1"}, fds=fds, rlimits={"RLIMIT_CORE": 0}))
            self._note.write_text(f"{pid} {say}".rstrip())
        finally:
            os.close(written)
            os.close(null)
        return pid

    def listener(self) -> socket.socket:
        """Its Unix socket, made anew. It listens before the process is there, so that nobody has to ask when it is ready."""
        self.at.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(str(self.at))
            self.at.chmod(0o600)
            listener.listen(8)
        except BaseException:
            listener.close()
            raise
        return listener

    async def end(self, holder: HolderClient) -> None:
        """Kill the one that runs, and wait for its end. Nothing happens if none does."""
        if pid := self.running():
            await holder.watch([pid])
            with contextlib.suppress(PlatformError):
                await holder.kill(pid, signal.SIGKILL)
            await holder.exit_of(pid)
            await holder.forget([pid])

    async def remove(self, holder: HolderClient) -> None:
        """End it for good."""
        await self.end(holder)
        self.at.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)


def _command(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
