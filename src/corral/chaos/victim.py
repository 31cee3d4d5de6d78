"""The server that is killed: the program `corral up`, with a home and a port of its own."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from corral import spawn
from corral.errors import PlatformError
from corral.places import Places

READY_TIMEOUT = 180.0
"""Seconds until it must take requests. On a machine under load adopting dozens of sandboxes takes its time."""
DOWN_TIMEOUT = 180.0
PASSED_ON = ("CORRAL_RUNSC", "CORRAL_PLATFORM", "CORRAL_FREEZE", "CORRAL_POOL")
"""Settings of the caller that the server under chaos gets too. The rest would lead it to another installation."""


class NotReady(PlatformError):
    """The server under chaos did not come up."""

    code = "not_ready"


class Victim:
    """One server, started again whenever it was killed."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.port = _free_port()
        self.log = places.home / "server-under-chaos.log"
        self._config = places.home / "chaos.toml"
        self._process: subprocess.Popen[bytes] | None = None
        self.ready = asyncio.Event()
        """Set while it takes requests: the time in which it is not there is nobody's hang."""
        self.kills: list[float] = []
        """When it was killed, on the event loop's clock."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The admin key that its first start made."""
        return (self.places.keys / "admin").read_text().strip()

    async def start(self) -> None:
        """Start it and wait until it takes requests. Raises `NotReady` with the end of its log."""
        reading, writing = os.pipe()
        with os.fdopen(reading) as said:
            self._process = self._launch(writing)
            os.close(writing)
            # It says its URL on the pipe when it is ready, and closes it when it ends.
            if not (await asyncio.to_thread(select.select, [said], [], [], READY_TIMEOUT))[0]:
                raise NotReady(f"the server was not ready within {READY_TIMEOUT:g} s:\n{self.tail()}")
            if not said.read():
                raise NotReady(f"the server ended with {await asyncio.to_thread(self._process.wait)}:\n{self.tail()}")
        self.ready.set()

    def _launch(self, writing: int) -> subprocess.Popen[bytes]:
        """Not by corral.spawn, which waits for what it starts: this one is to be killed."""
        self._config.touch()
        argv = ["up", "--port", str(self.port), "--config", str(self._config), "--log-format", "json", f"--ready={writing}"]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "corral", *argv],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[writing],
            )

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it: SIGKILL as a crash, SIGTERM in order. Sandboxes go on."""
        assert self._process is not None
        self.ready.clear()
        self.kills.append(asyncio.get_running_loop().time())
        self._process.send_signal(number)
        try:
            await asyncio.to_thread(self._process.wait, DOWN_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            raise NotReady(f"the server did not leave within {DOWN_TIMEOUT:g} s of {number.name}:\n{self.tail()}") from None

    def down(self) -> None:
        """`corral down`: the server, if it still runs, and everything of its home ends."""
        self.ready.clear()
        down(self.places.home, self._environment())
        if self._process is not None:
            self._process.wait(timeout=DOWN_TIMEOUT)

    def errors(self) -> list[str]:
        """What it logged as an error, in short."""
        found: list[str] = []
        for line in self.log.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("level") in ("error", "critical"):
                last = str(entry.get("exception") or entry.get("error") or "").strip().splitlines()
                found.append(f"{entry.get('event')}: {last[-1] if last else ''}".rstrip(": "))
        return found

    def tail(self) -> str:
        """The end of what it said."""
        return self.log.read_text(errors="replace")[-4000:]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_") or name in PASSED_ON}
        # A home directory of its own too, so that the user's client configuration is neither used nor overwritten.
        return {**kept, "CORRAL_HOME": str(self.places.home), "HOME": str(self.places.home)}


def down(home: Path, environment: Mapping[str, str]) -> None:
    """End the server and everything else of a home."""
    spawn.run([sys.executable, "-m", "corral", "down", "--home", str(home)], timeout=DOWN_TIMEOUT, env=environment).check()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
