"""One service that is to run: its present process, and what follows when that ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Protocol

from corral.control.ports import ProcessBook
from corral.errors import CorralError, InvalidState, NotFound, SandboxEnded, Unavailable
from corral.schema.image import Ready
from corral.schema.process import Process, ProcessStart, Signal
from corral.schema.service import Restart, Service, ServiceSet, ServiceState

TAG = "service:"
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds before a service is started again; twice as many each time, until it has run for the longest."""
STOP_SECONDS = 10.0
"""How long it may take to end by itself."""
AWAY = (InvalidState, SandboxEnded, Unavailable)
"""What is raised while a sandbox is being stopped or paused, when it has ended, or when it can't answer just now."""


class Note(Protocol):
    """Tells what happened to it."""

    def __call__(self, kind: str, **data: object) -> None: ...


class Attempt:
    """`book` gives the sandbox's processes, `ready` waits for a probe."""

    def __init__(self, name: str, settings: ServiceSet, *, book: Callable[[], ProcessBook], ready: Callable[[Ready], Awaitable[None]], note: Note) -> None:
        self.name, self.settings = name, settings
        self._book, self._probe, self._note = book, ready, note
        self._state = ServiceState.STOPPED
        self._process: str | None = None
        self._restarts = 0
        self._exit_code: int | None = None
        self._detail: str | None = None
        self._ready = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def describe(self) -> Service:
        return Service(
            name=self.name,
            state=self._state,
            settings=self.settings,
            process=self._process,
            restarts=self._restarts,
            exit_code=self._exit_code,
            detail=self._detail,
        )

    def begin(self, others: Mapping[str, Attempt]) -> None:
        """Nothing happens when it is under way."""
        if not self.under_way:
            self._restarts, self._detail = 0, None
            self._state = ServiceState.NEEDS if self.settings.needs else ServiceState.STARTING
            self._task = asyncio.get_running_loop().create_task(self._keep(others))

    def rest(self) -> None:
        """Until somebody asks for it, or for one that needs it."""
        if not self.under_way:
            self._state = ServiceState.IDLE

    @property
    def under_way(self) -> bool:
        return self._task is not None and not self._task.done()

    async def settled(self) -> None:
        """Until it is ready, or it is over."""
        if self._task is not None:
            ready = asyncio.ensure_future(self._ready.wait())
            try:
                await asyncio.wait({self._task, ready}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ready.cancel()

    def leave(self) -> None:
        """Look after it no more."""
        if self._task is not None:
            self._task.cancel()

    async def stop(self) -> None:
        """End it, by force when it takes too long."""
        self.leave()
        if self._task is not None:
            await asyncio.wait([self._task])
        self._state, self._detail = ServiceState.STOPPED, None
        if (process := self._running()) is not None:
            self._process = process.id
            await self._end(process.id)
            self._note("stopped", process=process.id)

    async def change(self, settings: ServiceSet) -> None:
        """End it, and be another program from the next `begin` on. Those that need it go on waiting for it."""
        await self.stop()
        self.settings = settings
        self._process, self._restarts, self._exit_code = None, 0, None

    def removed(self) -> None:
        """It is not among the others any more: those that wait for it fail."""
        self._ready.set()

    async def _end(self, id: str) -> None:
        for number in (15, 9):
            with suppress(InvalidState):  # it has just ended
                await self._book().signal(id, Signal(signal=number, to="tree"))
            if not (await self._book().wait(id, STOP_SECONDS)).running:
                return

    def runs(self) -> bool:
        """Whether a process of it is there, looked after or not."""
        return self._running() is not None

    def _running(self) -> Process | None:
        return next((process for process in self._book().list() if process.running and tag_of(process) == self.name), None)

    async def _keep(self, others: Mapping[str, Attempt]) -> None:
        try:
            await self._go(others)
        except CorralError as error:
            self._failed(error.message)
        finally:
            self._ready.clear()

    async def _go(self, others: Mapping[str, Attempt]) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        for need in self.settings.needs:
            if (other := others.get(need)) is not None:
                if other._state is ServiceState.IDLE:
                    other.begin(others)
                await other._ready.wait()
            if other is None or others.get(need) is not other:
                raise NotFound(f"it needs the service {need}, which is not there")
        while True:
            self._state, began = ServiceState.STARTING, loop.time()
            try:
                ended = await self._once()
            except AWAY as error:
                # Whoever is told that the sandbox has left ends this; else it was for a moment.
                ended, self._detail = None, error.message
            if ended is not None and not ended.lost:
                self._exit_code = ended.exit_code
                self._note("exited", process=ended.id, exit_code=ended.exit_code)
                if self.settings.restart is Restart.NEVER or (self.settings.restart is Restart.ON_FAILURE and ended.exit_code == 0):
                    self._state = ServiceState.FAILED if ended.exit_code else ServiceState.ENDED
                    return
            if loop.time() - began >= LONGEST_PAUSE:
                pause = FIRST_PAUSE
            self._state = ServiceState.WAITING
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self._restarts += ended is not None

    async def _once(self) -> Process:
        """Its process from the start to the end; ready in between."""
        id = self._process = (self._running() or await self._book().start(self._request())).id
        ended = asyncio.ensure_future(self._book().wait(id))
        probing = asyncio.ensure_future(self._probed())
        try:
            await asyncio.wait({ended, probing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done() and not ended.done():
                if (why := probing.result()) is None:
                    self._state, self._detail = ServiceState.READY, None
                    self._ready.set()
                    self._note("ready", process=id)
                else:
                    self._detail = why
                    await self._end(id)
            return await ended
        finally:
            self._ready.clear()
            ended.cancel()
            probing.cancel()
            await asyncio.gather(ended, probing, return_exceptions=True)

    async def _probed(self) -> str | None:
        """Why it is not ready; None: it is."""
        probe = self.settings.ready
        if probe is None and self.settings.http_port is not None:
            probe = Ready.model_validate({"port": self.settings.http_port})
        if probe is None:
            return None
        try:
            async with asyncio.timeout(probe.timeout):
                await self._probe(probe)
        except TimeoutError:
            return f"it was not ready within {probe.timeout:g} s"
        except AWAY:
            raise
        except CorralError as error:
            return f"it can't be asked whether it is ready: {error.message}"
        return None

    def _failed(self, why: str) -> None:
        self._state, self._detail = ServiceState.FAILED, why
        self._note("failed", detail=why)

    def _request(self) -> ProcessStart:
        wanted = self.settings
        return ProcessStart.model_validate(
            {"argv": wanted.argv, "command": wanted.command, "env": wanted.env, "cwd": wanted.cwd, "user": wanted.user, "tag": TAG + self.name}
        )


def tag_of(process: Process) -> str | None:
    """The service that a process is, if it is one."""
    tag = process.tag or ""
    return tag.removeprefix(TAG) if tag.startswith(TAG) else None
