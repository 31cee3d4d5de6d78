"""Making members and taking them apart: the order of the steps, each with a time-out.

make     slot → places → group → links → runsc create (by the holder) → network device → start → hello → sockets kept by the holder
prepare  the same without start and hello: what it will run is somebody's memory
destroy  kill → exits → sockets dropped → runsc's files → group → places → slot given back
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from corral.errors import CorralError, InternalError, PlatformError
from corral.node import hello, mounts, runsc, sentry, urpc
from corral.node.apart import Apart
from corral.node.cgroup import Group, Groups, Limits
from corral.node.holder_client import HolderClient, HolderLost, Spawn
from corral.node.limits import usual
from corral.node.member import MemberPlaces
from corral.node.memory import Needs
from corral.node.netns import made
from corral.node.network import Network
from corral.node.programs import Programs
from corral.node.runsc import Runsc
from corral.node.sentry import Identity, Sentry
from corral.node.slots import Slot
from corral.places import Places

CREATE_TIMEOUT = 60.0
"""Seconds for `runsc create`: 0.1 on an idle machine, more in a burst."""
HELLO_TIMEOUT = 20.0
OOM_SCORE_ADJ = 500
"""When the whole host is short of memory, its kernel takes sandboxes before anything of ours or the user's."""
BIRTH_MEMORY = 512
"""MiB for a member that is being made: runsc itself runs in the group."""
BIRTH_PIDS = 512
LOW_WEIGHT = 20
"""Share of a busy machine for members made in the background, of 100."""

log = structlog.get_logger(__name__)


class CreateFailed(PlatformError):
    """`runsc create` failed or hung."""

    code = "create_failed"


@dataclass(frozen=True)
class Member:
    """A sentry and everything that is to be undone: started, with its agent awake or stopped, or without anything in it yet (`prepared`)."""

    places: MemberPlaces
    group: Group
    sentry: Sentry
    control: socket.socket
    relay: socket.socket
    log: int
    """Read end of the agent's log pipe, non-blocking."""
    slot: Slot | None = None
    """Its network device; None on a machine that has none for sandboxes."""
    packets: socket.socket | None = None
    """The packet socket that the sentry has: readable while something has arrived that the sentry, perhaps stopped, has not taken yet."""
    prepared: bool = False
    needs: Needs | None = None
    """What its memory would need, once it has one; None of those whose server did not know."""

    @property
    def id(self) -> str:
        return self.places.id

    @property
    def descriptors(self) -> list[int]:
        """What the holder keeps of it, in this order."""
        network = [] if self.slot is None or self.packets is None else [self.slot.namespace.fd, self.packets.fileno()]
        return [self.control.fileno(), self.relay.fileno(), self.log, *network]

    def release(self) -> None:
        """Close our descriptors. The holder has its own."""
        _close(self.control, self.relay, self.log)
        if self.packets is not None:
            self.packets.close()
        self.sentry.release()


class Members:
    """Makes, finds again and destroys the members of one installation."""

    def __init__(self, places: Places, *, runsc: Runsc, agent: Path, platform: str, groups: Groups, holder: HolderClient, network: Network) -> None:
        self._places = places
        self._runsc = runsc
        self._platform = platform
        self._groups = groups
        self._holder = holder
        self._network = network
        self._dialect = urpc.Dialect.SET_NETWORK_ARGS
        self.programs = Programs(places, runsc, agent)
        self._apart = Apart(places.run / "programs")

    @property
    def runsc_root(self) -> Path:
        return runsc_root(self._places)

    async def make(self, *, background: bool, check: bool = False) -> Member:
        """A new member, awake, its agent greeted. `background`: others go first. `check`: the sentry's protocol is tried as well."""

        async def start(control: urpc.Sentry, socket: socket.socket) -> None:
            await control.start()
            if check:
                await urpc.self_test(control, self._runsc.path)
            await hello.greet(socket, timeout=HELLO_TIMEOUT)
            if background:
                await hello.warm(socket, timeout=HELLO_TIMEOUT)

        member = await self._make(self.programs.needs, background=background, start=start)
        if background:
            member.group.limit(usual())
        return member

    async def prepare(self, *, background: bool, needs: Needs | None = None) -> Member:
        """A new member that nothing runs in, for a memory to be restored into; of another runsc and agent than usual, if that memory needs them.

        Raises `Unsupported` when they are not to be had.
        """
        return await self._make(needs or self.programs.needs, background=background, start=None)

    async def _make(self, needs: Needs, *, background: bool, start: Callable[[urpc.Sentry, socket.socket], Awaitable[None]] | None) -> Member:
        program, agent = await asyncio.to_thread(self.programs.find, needs)
        name = "m-" + secrets.token_hex(6)
        places = self.places(name)
        group = self._groups.group(name)
        undo: list[Callable[[], Awaitable[None]]] = []
        try:
            slot = await self._network.slot()
            if slot is not None:
                undo.append(lambda: self._network.release(slot))
            undo.append(self._in_thread(places.remove))
            await asyncio.to_thread(places.make, agent)
            undo.append(lambda: _remove_group(group))
            await asyncio.to_thread(group.create, Limits(memory=BIRTH_MEMORY, pids=BIRTH_PIDS, weight=LOW_WEIGHT if background else 100))
            control, control_theirs = hello.link()
            relay, relay_theirs = hello.link()
            log_read, log_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.append(self._in_thread(lambda: _close(control, relay, log_read)))
            try:
                await self._create(program, name, places, group, (control_theirs.fileno(), relay_theirs.fileno(), log_write))
            finally:
                _close(control_theirs, relay_theirs, log_write)
                undo.append(self._in_thread(lambda: self._unlink(name)))
                undo.append(lambda: self._kill_group(group))
            identity, address = sentry.control_socket(self.runsc_root, name)
            found = Sentry(identity, self._holder)
            undo.append(self._in_thread(found.release))
            undo.append(lambda: self._forget(name, found.pids))
            await found.watch()
            nic = None if slot is None else await made(slot.nic, lambda nic: nic.packets.close())
            if nic is not None:
                undo.append(self._in_thread(nic.packets.close))
            async with self._talk(name, address) as calls:
                await calls.set_up_network(nic)
                self._dialect = calls.dialect
                if start is not None:
                    await start(calls, control)
            packets = None if nic is None else nic.packets
            member = Member(places, group, found, control, relay, log_read, slot, packets, prepared=start is None, needs=needs)
            await self._holder.keep(name, member.descriptors)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                log.warning("member failed", member=name, error=str(error), runsc=places.excerpt(places.runsc_log), panic=places.excerpt(places.panic_log))
            await asyncio.shield(_undo(undo))
            raise
        return member

    async def _create(self, program: Runsc, id: str, places: MemberPlaces, group: Group, fds: tuple[int, int, int]) -> None:
        program = await asyncio.to_thread(self._apart.of, program)
        argv = program.create(root=self.runsc_root, bundle=places.directory, id=id, platform=self._platform)
        spawn = Spawn(
            argv,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            fds=dict(enumerate(fds)),
            join=group.procs,
            rlimits={"RLIMIT_NOFILE": 1_048_576, "RLIMIT_CORE": 0},
            oom_score_adj=OOM_SCORE_ADJ,
        )
        pid = await self._holder.spawn(spawn)
        try:
            async with asyncio.timeout(CREATE_TIMEOUT):
                status = await asyncio.shield(self._holder.exit_of(pid))
        except TimeoutError:
            await self._holder.kill(pid, signal.SIGKILL)
            raise CreateFailed(f"`runsc create` did not end within {CREATE_TIMEOUT:g} s and was killed") from None
        await self._holder.forget([pid])
        if status is None:
            raise HolderLost("the holder went away while it was starting a sandbox")
        if status != 0:
            raise CreateFailed(f"`runsc create` ended with status {status}: {places.excerpt(places.runsc_log) or 'it wrote no log'}")

    @asynccontextmanager
    async def _talk(self, id: str, address: str) -> AsyncGenerator[urpc.Sentry]:
        connection = await urpc.Connection.open(address, timeout=10)
        try:
            yield urpc.Sentry(connection, id, self._dialect)
        finally:
            connection.close()

    @asynccontextmanager
    async def talk(self, member: Member) -> AsyncGenerator[urpc.Sentry]:
        """A connection to the member's sentry. Raises `SentryGone`, also when it refuses something because it, or its gofer, has ended: it says so before it goes."""
        try:
            _, address = sentry.control_socket(self.runsc_root, member.id)
        except (FileNotFoundError, ProcessLookupError):
            raise urpc.SentryGone(f"the sentry of {member.id} has ended") from None
        try:
            async with self._talk(member.id, address) as calls:
                yield calls
        except urpc.UrpcError as error:
            if isinstance(error, urpc.SentryGone) or member.sentry.alive:
                raise
            raise urpc.SentryGone(f"the sentry of {member.id} has ended: {error.message}") from error

    async def adopt(self, id: str, identity: Identity, slot: int | None, needs: Needs | None) -> Member:
        """A member of an earlier server, with the number of its slot. Raises `ProcessLookupError` when its sentry is gone, `HolderError` when its sockets are."""
        found = Sentry(identity, self._holder)
        try:
            control_fd, relay_fd, log_fd, *network = await self._holder.take(id)
            await found.watch()
        except BaseException:
            found.release()
            raise
        control, relay = socket.socket(fileno=control_fd), socket.socket(fileno=relay_fd)
        control.settimeout(0)
        relay.settimeout(0)
        adopted = None if slot is None or not network else self._network.adopt(slot, network[0])
        if adopted is None:
            _close(*network)
            return Member(self.places(id), self._groups.group(id), found, control, relay, log_fd, needs=needs)
        packets = socket.socket(fileno=network[1])
        return Member(self.places(id), self._groups.group(id), found, control, relay, log_fd, adopted, packets, needs=needs)

    async def destroy(self, member: Member) -> None:
        """End a member and leave nothing of it. A root mounted in it is unmounted too; do it before, to be sure that it is written out."""
        await member.sentry.kill()
        member.release()
        await self.remove(member.id)
        await self._holder.forget(member.sentry.pids)
        if member.slot is not None:
            await self._network.release(member.slot)

    async def kill_stranger(self, id: str) -> None:
        """End every process of a member nobody has hold of."""
        await self._kill_group(self._groups.group(id))

    async def remove(self, id: str) -> None:
        """Remove what a dead member leaves: its descriptors in the holder, runsc's files, group, mounts, files. What is missing already is no error."""
        await self._holder.drop([id])
        self._unlink(id)
        await _remove_group(self._groups.group(id))
        await asyncio.to_thread(self.places(id).remove)

    def places(self, id: str) -> MemberPlaces:
        return MemberPlaces(self._places.members / id)

    def group(self, id: str) -> Group:
        return self._groups.group(id)

    def known(self) -> set[str]:
        """Every member there is a trace of."""
        directories = {entry.name for entry in self._places.members.iterdir()}
        states = {path.name.partition("_sandbox:")[0] for path in self.runsc_root.glob("*_sandbox:*")}
        return directories | states | self._groups.names()

    def remove_root(self) -> None:
        """Remove runsc's directory, when no member is left, with what newer versions keep in it for all sandboxes (a network namespace, mounted on a file)."""
        self._apart.remove()
        if not self.runsc_root.is_dir():
            return
        mounts.sweep(self.runsc_root)
        for file in self.runsc_root.iterdir():
            file.unlink()
        self.runsc_root.rmdir()

    async def _forget(self, id: str, pids: list[int]) -> None:
        await self._holder.drop([id])
        await self._holder.forget(pids)

    def _unlink(self, id: str) -> None:
        for file in runsc.state_files(self.runsc_root, id):
            file.unlink(missing_ok=True)

    async def _kill_group(self, group: Group) -> None:
        """Kill everything in a group. Only for members that failed or belong to nobody: nothing tells when they are gone, so this looks again and again."""
        for delay in _delays():
            pids = group.members()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(delay)
        raise InternalError(f"processes can't be killed: {sorted(group.members())}")

    @staticmethod
    def _in_thread(function: Callable[[], None]) -> Callable[[], Awaitable[None]]:
        return lambda: asyncio.to_thread(function)


def runsc_root(places: Places) -> Path:
    """runsc's own directory: state files and control sockets. Whoever can read it controls the sentries."""
    return places.run / "runsc"


async def _remove_group(group: Group) -> None:
    # A task leaves its group a moment before its parent can reap it, but the kernel counts it out a moment later.
    for delay in _delays():
        if await asyncio.to_thread(group.remove):
            return
        await asyncio.sleep(delay)
    raise InternalError(f"a control group can't be removed: {sorted(group.members())} are in it")


def _delays() -> Iterator[float]:
    """Seconds between looks at something of which nothing tells: at first close together; ten seconds in all."""
    yield from (0.0005, 0.001, 0.002, 0.004, 0.008)
    yield from [0.01] * 1000


async def _undo(steps: list[Callable[[], Awaitable[None]]]) -> None:
    for step in reversed(steps):
        try:
            await step()
        except (CorralError, OSError) as error:
            log.error("a failed member was not wholly removed", error=str(error))


def _close(*things: socket.socket | int) -> None:
    for thing in things:
        if isinstance(thing, int):
            os.close(thing)
        else:
            thing.close()
