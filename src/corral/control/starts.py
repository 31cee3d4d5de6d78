"""What an image starts in each new sandbox, and when that is ready."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable

import structlog

from corral.control.events import EventLog
from corral.control.ports import Node, ProcessBook
from corral.control.record import Record
from corral.errors import BuildFailed, CorralError, DeadlineExceeded, SandboxEnded
from corral.images.config import ImageConfig
from corral.schema.image import Ready, SetStart
from corral.schema.process import Process, ProcessStart

TAG = "start"
"""The tag of the process, to find it by."""
_EACH = 0.05
"""Seconds between two looks of the shell inside."""
_SAID = 500
"""Bytes of what a probe's shell said that are told."""

log = structlog.get_logger(__name__)


class Starts:
    """`config` gives the configuration of an image of the project that a sandbox was asked for."""

    def __init__(self, *, node: Node, events: EventLog, config: Callable[[Record], ImageConfig | None]) -> None:
        self._node = node
        self._events = events
        self._config = config

    async def after(self, record: Record) -> None:
        """Start what the image of a new sandbox says, and wait until it is ready. Raises `BuildFailed` when it ends before, `DeadlineExceeded` when it takes too long."""
        config = self._config(record)
        if config is None or config.start is None:
            return
        if "restore" in (record.timing or {}) and any(process.tag == TAG for process in self._node.processes(record.id).list()):
            return  # it came out of a memory, and runs
        await self.begin(record, SetStart.model_validate(config.start))

    async def begin(self, record: Record, start: SetStart) -> None:
        """Start it, and wait until it is ready. Raises as `after`."""
        words = {"command": start.command} if isinstance(start.command, str) else {"argv": start.command}
        seen = self._events.seq
        process = await self._node.processes(record.id).start(ProcessStart.model_validate({**words, "tag": TAG}))
        if start.ready is None:
            return
        ready = asyncio.ensure_future(self.ready(record, start.ready, seen))
        ended = asyncio.ensure_future(self._node.processes(record.id).wait(process.id))
        try:
            done, _ = await asyncio.wait({ready, ended}, timeout=start.ready.timeout, return_when=asyncio.FIRST_COMPLETED)
            if ready in done or (ended in done and ended.result().exit_code == 0 and not _lasts(start.ready)):
                await ready
            elif ended in done:
                raise BuildFailed(f"the image's start command ended with {ended.result().exit_code} before it was ready", hint="run it by hand and look")
            else:
                raise DeadlineExceeded(f"what the image starts was not ready within {start.ready.timeout:g} s", hint="give its probe a longer timeout")
        finally:
            for task in (ready, ended):
                task.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)

    async def ready(self, record: Record, probe: Ready, seen: int) -> None:
        """Return when a probe says so. `seen`: the newest event when what is probed had not begun. Raises `DeadlineExceeded`, and `BuildFailed` when the probe can't be run."""
        if probe.seconds is not None:
            await asyncio.sleep(probe.seconds)
        elif probe.port is not None:
            await self._listens(record, probe.port, seen)
        else:
            loop = f"until {_test(probe)}; do sleep {_EACH}; done"
            book = self._node.processes(record.id)
            process = await book.start(ProcessStart.model_validate({"argv": ["/bin/sh", "-c", loop], "timeout": probe.timeout}))
            try:
                await _check_ended(book, await book.wait(process.id), probe)
            finally:
                await asyncio.shield(_forget(book, process.id))

    async def _listens(self, record: Record, port: int, seen: int) -> None:
        if any(one.port == port for one in await self._node.ports(record.id)):
            return
        async for event in self._events.follow(record.project, after=seen, sandbox=record.id, kinds=("port.opened",)):
            if event.data.get("port") == port:
                return


async def _check_ended(book: ProcessBook, ended: Process, probe: Ready) -> None:
    """Raises when a probe's shell ended otherwise than by what it asked for."""
    if ended.lost:
        raise SandboxEnded("the sandbox was stopped meanwhile", hint="start it again")
    if ended.timed_out:
        raise DeadlineExceeded(f"it was not ready within {probe.timeout:g} s", hint="give its probe a longer timeout")
    if ended.exit_code != 0:
        said = b""
        async for one in book.raw_output(ended.id, None, 0, follow=False, limit=_SAID):
            if not isinstance(one, Process) and not said:
                said = one.data
        raise BuildFailed(f"the probe ended with {ended.exit_code}: {said.decode(errors='replace').strip()}".rstrip(": "), hint="run it by hand and look")


async def _forget(book: ProcessBook, id: str) -> None:
    try:
        await book.forget(id)
    except CorralError as error:
        # Its sandbox has left, and it with that; or its own timeout ends it.
        log.info("probe_not_ended", process=id, error=error.message)


def _lasts(probe: Ready) -> bool:
    """Whether it can only be ready while the command runs."""
    return probe.port is not None or probe.url is not None or probe.process is not None


def _test(probe: Ready) -> str:
    """What a shell asks."""
    if probe.file is not None:
        return f"test -e {shlex.quote(probe.file)}"
    if probe.process is not None:
        return f"grep -qsxF {shlex.quote(probe.process[:15])} /proc/[0-9]*/comm"
    if probe.url is not None:
        url = shlex.quote(probe.url)
        return f"{{ command -v curl >/dev/null && curl -fsS -o /dev/null {url} || wget -q -O /dev/null {url}; }} 2>/dev/null"
    return f"( {probe.command}\n) >/dev/null 2>&1"
