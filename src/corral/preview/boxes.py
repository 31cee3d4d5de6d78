"""Sandboxes as the preview process knows them: asked for at the first request, kept while their relay link lives, and while they are paused as long as somebody is connected; kept awake while
requests pass."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from corral.preview.access import Settings
from corral.preview.answers import Refusal
from corral.preview.desk import Desk
from corral.preview.duplex import Broken
from corral.preview.guest import Guest, Left, Listener, PortClosed, PortTaken, Stream, Unreachable

AWAKE_SECONDS = 2.0
"""Seconds for which a sandbox is kept from being frozen after the last byte to or from a port of it."""
CONNECTIONS = 2048
"""Connections to ports of one sandbox at a time; its agent has room for twice as many."""


class Tell(Protocol):
    """Tells the server whether a sandbox is to be kept awake."""

    def __call__(self, *, on: bool, exposed: str | None = None) -> None:
        """`exposed`: instead, whether so NAME:PORT is served from outside."""
        ...


class Box:
    """One sandbox that runs, or is paused and has connections that go on when it is resumed."""

    def __init__(
        self,
        id: str,
        project: str,
        settings: Settings,
        relay: socket.socket,
        *,
        tell: Tell,
        wake: Callable[[], Awaitable[None]],
        asleep: Callable[[Box], None],
        gone: Callable[[Box], None],
    ) -> None:
        """`wake` has it resumed; `asleep` is told that its link has ended and connections wait, `gone` that it is of no more use."""
        self.id, self.project, self.settings = id, project, settings
        self._guest = Guest(relay, self._lost, wake)
        self._tell = tell
        self._asleep = asleep
        self._gone = gone
        self._entering = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._connections = 0
        self._waiting = 0
        self._used_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._listeners: dict[str, Listener] = {}
        self.alive = True
        """Whether it can be reached just now."""
        self._closed = False
        self._speaks = asyncio.Event()
        """Whether something may be sent to it; where it can't be reached as well, since nobody has to wait for that."""
        self._speaks.set()

    async def open(self) -> None:
        self.used()
        await self._guest.open()

    async def come_back(self, relay: socket.socket) -> None:
        """It was resumed. Raises `Refusal`; then its connections have ended."""
        async with self._entering:
            if not self.alive and not self._closed:
                try:
                    await self._guest.come_back(relay)
                except Unreachable as error:
                    self.close(str(error))
                else:
                    self.alive = True
                    self.used()
            else:
                relay.close()
        if self._closed:
            raise Refusal(502, "unreachable", f"the sandbox {self.id} can't be reached: it has just ended", "try again", retry=2)
        if not self._guest.reached:
            self._lost()  # just now: nobody was told while it came back

    @property
    def awake(self) -> bool:
        return self._timer is not None

    @property
    def owes(self) -> bool:
        """Whether something was said to it that waits for it to be woken."""
        return not self.alive and self._guest.owes

    async def dial(self, port: int) -> Stream:
        """Raises `Refusal`."""
        return await self._connect(lambda: self._guest.dial(port), f"port {port}", port)

    async def accept(self, at: str, connection: int) -> Stream:
        """A connection of which the listener at NAME:PORT has told. Raises `Refusal`."""
        if (listener := self._listeners.get(at)) is None:
            raise Refusal(404, "not_found", f"{at} is not exposed to the sandbox {self.id}", "expose it first")
        return await self._connect(lambda: self._guest.accept(listener, connection), at, None)

    async def _connect(self, connecting: Callable[[], Awaitable[Stream]], what: str, port: int | None) -> Stream:
        if self._connections >= CONNECTIONS:
            raise Refusal(429, "too_many_connections", f"{CONNECTIONS} connections to this sandbox are open", "close some, or try again later", retry=5)
        self._connections += 1
        try:
            await self._turn()
            return await connecting()
        except BaseException as error:
            self.hung_up()
            match error:
                case PortClosed() if port is None:
                    raise Refusal(404, "not_found", f"the connection to {what} does not wait any more", "take the next one") from None
                case PortClosed():
                    hint = f"start a server on 127.0.0.1:{port} or 0.0.0.0:{port} inside; `corral preview {self.id}` lists the ports that are open"
                    message = f"nothing listens on port {port} of the sandbox {self.id}"
                    raise Refusal(502, "port_closed", message, hint, title=f"Nothing on port {port} yet", retry=2) from None
                case Left():
                    raise self._paused() from None
                case Unreachable():
                    raise Refusal(502, "unreachable", f"the sandbox {self.id} can't be reached: {error}", "try again", retry=2) from None
                case _:
                    raise

    async def _turn(self) -> None:
        """Until something may be sent to it: an agent that is not told of a connection can't be late with it. Raises `Refusal`."""
        self.used()
        while self.alive and not self._speaks.is_set():
            await self._speaks.wait()
        if not self.alive:
            raise self._paused()
        self.used()

    def _paused(self) -> Refusal:
        return Refusal(503, "paused", f"the sandbox {self.id} has just been paused", "try again", title="This sandbox is paused", retry=1)

    def hung_up(self) -> None:
        """A connection that `dial` or `accept` made, or what `listen` gave, was closed."""
        self._connections -= 1
        if not (self.alive or self._connections or self._entering.locked()):
            self.close()  # nobody waits for it any more

    async def listen(self, name: str, port: int) -> Listener:
        """Have NAME:PORT inside served from outside, as long as what this gives is open. Raises `Refusal`."""
        at = f"{name}:{port}"
        taken = Refusal(409, "conflict", f"{at} is exposed to the sandbox {self.id} already", "end that first, or choose another name or port")
        if at in self._listeners:
            raise taken
        self._connections += 1
        try:
            await self._turn()
            listener = await self._guest.listen(name, port)
        except BaseException as error:
            self.hung_up()
            match error:
                case PortTaken():
                    raise taken from None
                case Left():
                    raise self._paused() from None
                case Unreachable():
                    raise Refusal(502, "unreachable", f"{at} can't be exposed to the sandbox {self.id}: {error}", "try again", retry=2) from None
                case _:
                    raise
        self._listeners[at] = listener
        self._tell(exposed=at, on=True)
        return listener

    def unlisten(self, listener: Listener) -> None:
        """It was closed."""
        for at in [at for at, one in self._listeners.items() if one is listener]:
            del self._listeners[at]
            self._tell(exposed=at, on=False)

    async def hush(self) -> None:
        """Send it nothing; all that was sent has been read when this returns."""
        self._speaks.clear()
        await self._guest.hush()

    def speak(self) -> None:
        self._guest.speak()
        self._speaks.set()

    # Awake

    def used(self) -> None:
        """Bytes pass. Cheap enough for every one of them."""
        self._used_at = self._loop.time()
        if self._timer is None and self.alive:
            self._timer = self._loop.call_later(AWAKE_SECONDS, self._look)
            self._tell(on=True)

    def waiting(self, *, on: bool) -> None:
        """An answer is awaited of it, or has come."""
        self._waiting += 1 if on else -1
        self.used()

    def _look(self) -> None:
        left = self._used_at + AWAKE_SECONDS - self._loop.time()
        if self._waiting:
            left = AWAKE_SECONDS
        if left > 0 and self.alive:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._timer = None
            self._tell(on=False)

    def _lost(self) -> None:
        self.alive = False
        self._speaks.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._entering.locked() or self._closed:
            return
        if self._guest.connected:
            self._asleep(self)
        else:
            self.close("the sandbox has ended")

    def close(self, why: str = "the sandbox was left") -> None:
        """End its connections."""
        if not self._closed:
            self._closed = True
            self._lost()
            self._guest.close(why)
            self._gone(self)


@dataclass(frozen=True)
class Asleep:
    """A sandbox that would have to be woken; only for those who may see it."""

    id: str
    project: str
    settings: Settings
    paused: bool
    """Its connections go on when it is woken."""


@dataclass(eq=False)
class _Question:
    """One about a sandbox, until its answer is made use of. `outdated`: what is answered may be so no more."""

    id: str
    outdated: bool = False


class Boxes:
    """By id. Each is asked for once, however many requests wait for it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._boxes: dict[str, Box] = {}
        self._asking: dict[tuple[str, bool, bool], asyncio.Task[Box | Asleep]] = {}
        self._hushed: dict[str, asyncio.Event] = {}
        """Those that nothing may be sent to now, and what ends the waiting for that."""
        self._looking: set[asyncio.Task[None]] = set()
        self._questions: set[_Question] = set()

    async def find(self, id: str, *, people: bool) -> Box | Asleep:
        """Raises `Refusal`: not there, ended, not in time. `people`: they are shown a page that waits, instead of waiting themselves."""
        return await self._once(id, people=people, wake=False)

    async def wake(self, id: str, *, people: bool) -> Box:
        """As `find`; once this is answered it runs."""
        box = await self._once(id, people=people, wake=True)
        if isinstance(box, Asleep):
            raise Refusal(503, "starting", f"the sandbox {id} is not awake yet", "try again in a moment", title="Waking …", retry=1)
        return box

    async def _once(self, id: str, *, people: bool, wake: bool) -> Box | Asleep:
        if (box := self._boxes.get(id)) is not None and box.alive:
            return box
        key = (id, people, wake)
        if (asking := self._asking.get(key)) is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(id, people=people, wake=wake))
            asking.add_done_callback(lambda done: self._asked(key, done))
        return await asyncio.shield(asking)

    async def serve(self, box: Box, port: int, *, people: bool) -> bool:
        """Nothing listens on the port: whether a service does now. Raises `Refusal` when one is to, and does not."""
        if not self._desk.here:
            return False
        box.waiting(on=True)
        try:
            answer, _ = await self._desk.ask(ask="serve", sandbox=box.id, port=port, people=people)
        finally:
            box.waiting(on=False)
        if "refuse" in answer:
            raise refusal(answer["refuse"])
        return bool(answer["served"])

    def _asked(self, key: tuple[str, bool, bool], done: asyncio.Task[Box | Asleep]) -> None:
        del self._asking[key]
        if not done.cancelled():
            done.exception()  # whoever waited was told; all of them may have left

    async def _ask(self, id: str, *, people: bool, wake: bool) -> Box | Asleep:
        answer, relay = await self._told(id, people=people, wake=wake)
        if relay is None:
            return Asleep(id, answer["project"], settings(answer), paused=answer["paused"])
        if (other := self._boxes.get(id)) is not None:
            # The one with people, the other without; or it was paused.
            other.settings = settings(answer)
            await other.come_back(relay)
            return other
        box = Box(
            id,
            answer["project"],
            settings(answer),
            relay,
            tell=self._teller(id),
            wake=lambda: self._wake(id),
            asleep=self._fell_asleep,
            gone=self._forget,
        )
        self._boxes[id] = box
        try:
            await box.open()
        except Unreachable as error:
            box.close()
            raise Refusal(502, "unreachable", f"the sandbox {id} can't be reached: {error}", "try again", retry=2) from None
        except BaseException:
            box.close()
            raise
        return box

    async def _told(self, id: str, *, people: bool, wake: bool) -> tuple[dict[str, Any], socket.socket | None]:
        """What the server says of it, with its relay link if it runs, once something may be said to it. What has changed meanwhile is asked again."""
        while True:
            question = _Question(id)
            self._questions.add(question)
            relay: socket.socket | None = None
            try:
                answer, fds = await self._desk.ask(ask="box", sandbox=id, people=people, wake=wake)
                if "refuse" in answer:
                    raise refusal(answer["refuse"])
                if fds:
                    relay = socket.socket(fileno=fds[0])
                    while (hushed := self._hushed.get(id)) is not None:
                        await hushed.wait()
                if not question.outdated:
                    lent, relay = relay, None
                    return answer, lent
            finally:
                self._questions.discard(question)
                if relay is not None:
                    relay.close()

    async def _wake(self, id: str) -> None:
        """For its connections. Raises `Broken`; who sees that it is not awake yet asks again."""
        try:
            await self.wake(id, people=False)
        except Refusal as error:
            if error.code not in ("starting", "paused"):
                raise Broken(error.message) from None

    def _fell_asleep(self, box: Box) -> None:
        """Its link has ended: whether it is paused, or runs again already, is known to the server."""
        task = asyncio.create_task(self._look(box))
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self, box: Box) -> None:
        try:
            found = await self._ask(box.id, people=False, wake=False)
            if isinstance(found, Asleep) and not found.paused:
                box.close("the sandbox was stopped")
            while box.owes:
                # Said when nothing could be sent any more, so that nobody was told to wake it.
                await self._wake(box.id)
        except (Refusal, Broken) as error:
            # Where no server is there nobody knows; the next one is asked.
            if self._desk.here:
                box.close(error.message if isinstance(error, Refusal) else str(error))

    def back(self, id: str) -> None:
        """It runs again."""
        if (box := self._boxes.get(id)) is not None and not box.alive:
            self._fell_asleep(box)

    def _teller(self, id: str) -> Tell:
        def tell(*, on: bool, exposed: str | None = None) -> None:
            self._desk.tell(**({"awake": id} if exposed is None else {"exposed": exposed, "sandbox": id}), on=on)

        return tell

    def _forget(self, box: Box) -> None:
        if self._boxes.get(box.id) is box:
            del self._boxes[box.id]

    def change(self, id: str, message: dict[str, Any]) -> None:
        """Its settings are others now."""
        self._outdate(id)
        if (box := self._boxes.get(id)) is not None:
            box.settings = settings(message)

    def _outdate(self, id: str | None = None) -> None:
        for question in self._questions:
            question.outdated = question.outdated or id in (None, question.id)

    async def hush(self, id: str) -> None:
        """Nothing is sent to it from when this returns until `speak`. A hush that the server does not end, since it has gone, ends with `alone`."""
        self._hushed.setdefault(id, asyncio.Event())
        if (box := self._boxes.get(id)) is not None:
            await box.hush()
            if id not in self._hushed:
                box.speak()

    def speak(self, id: str) -> None:
        if (hushed := self._hushed.pop(id, None)) is not None:
            hushed.set()
        if (box := self._boxes.get(id)) is not None:
            box.speak()

    def alone(self) -> None:
        """The server has gone. The next one knows of no hush, and tells changes only of those that it was told of, or was asked for itself."""
        self._outdate()
        for id in list(self._hushed):
            self.speak(id)

    def retell(self) -> None:
        """A new server does not know which are to be kept awake. What became of the others meanwhile we do not know."""
        for box in self._boxes.values():
            if box.awake:
                self._desk.tell(awake=box.id, on=True)
            elif not box.alive:
                self._fell_asleep(box)

    def ids(self) -> list[str]:
        return list(self._boxes)

    def drop(self, id: str) -> None:
        if (box := self._boxes.get(id)) is not None:
            box.close()


def settings(message: dict[str, Any]) -> Settings:
    hosts = {int(port): host for port, host in message["hosts"].items()}
    only = None if message["only"] is None else frozenset[int](message["only"])
    return Settings(message["token"], frozenset(message["public"]), hosts, every=message["every"], only=only, forbids=message["forbids"])


def refusal(told: dict[str, Any]) -> Refusal:
    refused = Refusal(told["status"], told["code"], told["message"], told.get("hint"), told.get("title"), told.get("retry"), told.get("details") or {})
    refused.body = told.get("body")
    return refused
