"""The guest of one sandbox, as the node sees it through the agent: taking its link, claiming it, its processes and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from corral.errors import CorralError, PlatformError, Unavailable
from corral.node.link import Link, RequestFailed
from corral.node.processes import Bounds, OnEvent, ProcessBook
from corral.node.refusals import refusal
from corral.node.start import Defaults, encoded
from corral.wire import messages, requests
from corral.wire.frame import ProtocolError
from corral.wire.messages import Event

T = TypeVar("T")

HELLO_TIMEOUT = 10.0
CLAIM_TIMEOUT = 10.0
HOOKS_TIMEOUT = 40.0
"""The agent gives hooks 30 seconds."""


class Guest:
    """Made for a link; `hello` first, then `claim` unless `claimed` is already true, then everything else."""

    def __init__(
        self,
        link: Link,
        spool: Path,
        sandbox: str,
        *,
        defaults: Defaults | None = None,
        bounds: Bounds | None = None,
        on_event: OnEvent | None = None,
        activity: Callable[[], None] | None = None,
        book: ProcessBook | None = None,
    ) -> None:
        """`spool` is the sandbox's own directory (`spool/<id>`). `activity` is called before the guest is used and whenever it sends something.

        `book`: of a paused sandbox that is being resumed, with those who wait for its processes.
        """
        self.link = link
        self.defaults = defaults or Defaults()
        self.claimed = False
        self.version = ""
        self.alive = 0
        """Whether processes other than the agent live inside, as the agent says: 0 for none, else at least one."""
        self.processes = book or ProcessBook(spool, sandbox, defaults=self.defaults, bounds=bounds, on_event=on_event)
        self._on_event: OnEvent = on_event or (lambda _kind, _data: None)
        link.on_event = self._event
        link.on_end = self._ended
        if activity is not None:
            link.on_activity = activity

    async def hello(self, *, timeout: float = HELLO_TIMEOUT) -> None:
        """Take the link, and whatever an earlier server left running behind it."""
        try:
            await self.link.hello(self.processes.hello(), self._greeted, timeout=timeout)
        except RequestFailed as error:
            raise PlatformError(f"the guest agent refuses this server: {error.problem.message}", hint="create a new sandbox") from error
        if not self.version:
            raise PlatformError("the guest agent's greeting makes no sense", hint="create a new sandbox")

    def _greeted(self, greeting: messages.Greeting) -> None:
        if greeting.version != requests.VERSION:
            raise ProtocolError(f"the guest agent speaks version {greeting.version} of the wire")
        self.claimed = greeting.claimed
        self.version = greeting.agent
        self.processes.adopt(self.link, greeting)

    async def claim(
        self,
        *,
        hostname: str,
        memory: int,
        cpus: int,
        pids: int,
        tmp: int,
        sudo: bool,
        files: Sequence[requests.GuestFile] = (),
        volumes: Sequence[requests.Volume] = (),
        timeout: float = CLAIM_TIMEOUT,
    ) -> None:
        """Turn the waiting guest into this sandbox. `memory` and `tmp` in MiB, `cpus` as the guest may see, `pids` 0 for no limit."""
        env = [encoded(f"{name}={value}") for name, value in self.defaults.env.items()]
        claim = requests.Claim(hostname=hostname, memory=memory, cpus=cpus, pids=pids, tmp=tmp, files=files, volumes=volumes, sudo=sudo, env=env)
        await self._ask(claim, messages.Done, timeout=timeout)
        self.claimed = True

    async def volume(self, name: str, path: str, *, attach: bool) -> None:
        """Have a volume that the host shows under that name appear at `path`, or take it away from there."""
        await self._ask(requests.MountVolume(name=name, target=encoded(path), attach=attach), messages.Done)

    async def ping(self, *, timeout: float = 5.0) -> None:
        """Raises `Unavailable` when the agent does not answer in time."""
        await self._ask(requests.Ping(), messages.Done, timeout=timeout)

    async def ports(self) -> list[messages.ListeningPort]:
        """TCP ports that something inside listens on."""
        return (await self._ask(requests.Ports(), messages.ListeningPorts)).ports

    async def listing(self) -> list[messages.GuestProcess]:
        """Every process inside, whoever started it."""
        return (await self._ask(requests.Processes(), messages.GuestProcesses)).processes

    async def usage(self) -> messages.UsageNow:
        return await self._ask(requests.Usage(), messages.UsageNow)

    async def quiesce(self, *, on: bool) -> None:
        """Before a save: nothing is under way when it returns, and nothing is sent until it is turned off."""
        if not on:
            self.link.speak()
        await self._ask(requests.Quiesce(on=on), messages.Done, last=on)

    async def restored(self, *, hostname: str, files: Sequence[requests.GuestFile], env: Mapping[str, str] | None = None, fork: bool = False) -> list[str]:
        """Tell a guest that has come back where it is now: files that name its address, and `env` in place of its variables. As a `fork` it gets an identity of its own and its
        hooks run; returns what those of them say that failed."""
        told = None if env is None else [encoded(f"{name}={value}") for name, value in env.items()]
        request = requests.Restored(hostname=hostname, files=files, env=told, fork=fork)
        return (await self._ask(request, messages.Hooks, timeout=HOOKS_TIMEOUT)).failed

    async def obstacles(self, *, files: bool) -> list[messages.Obstacle]:
        """What in it can't be saved, as far as can be seen from inside: connections, and `files` that are open and deleted, which takes longer to find."""
        return (await self._ask(requests.Obstacles(files=files), messages.Obstacles)).obstacles

    def suspend(self) -> None:
        """It has been saved and is about to be ended: leave its processes to whoever resumes it."""
        self.processes.suspend()
        self.link.leave(Unavailable("the sandbox is being paused", hint="try again, which resumes it"))

    def close(self) -> None:
        """Leave the guest as it is for the next server."""
        self.processes.close()
        self.link.close()

    async def _ask(self, request: requests.Request, answer: type[T], *, timeout: float = 30.0, last: bool = False) -> T:
        try:
            return await self.link.request(request, answer, timeout=timeout, last=last)
        except RequestFailed as error:
            raise refusal(error.problem) from error

    def _event(self, event: Event) -> None:
        match event:
            case messages.Activity():
                self.alive = event.processes
            case messages.Port():
                self._on_event("port.opened" if event.open else "port.closed", {"port": event.port, "process": event.process})
            case messages.Exit() | messages.Closed() | messages.Incoming():
                raise ProtocolError(f"`{type(event).__name__}` about no channel")

    def _ended(self, _error: CorralError) -> None:
        self.processes.lose()
        self.link.settle()
