"""A client's connection: request after request, each looked at for itself, until it ends or goes over to another protocol."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TypeVar

from corral.preview import access, answers, onward, tunnel
from corral.preview import head as heads
from corral.preview.access import Verdict
from corral.preview.answers import Refusal
from corral.preview.boxes import Asleep, Box, Boxes
from corral.preview.desk import Desk
from corral.preview.doors import Table, Target
from corral.preview.duplex import Broken, Connection
from corral.preview.exchange import NothingCame, Side, Truncated, exchange, splice
from corral.preview.head import BadHead, Request, Response
from corral.preview.onward import Origin

HEAD_SECONDS = 20.0
"""Seconds in which a head must be whole once it has begun; for the first one, since the connection was made."""
IDLE_SECONDS = 75.0
"""Seconds an idle connection is kept."""
LINGER_SECONDS = 10.0
"""Seconds that an answer may take once the client has ended its direction."""
CONNECTIONS = 20_000

T = TypeVar("T")


@dataclass
class Far:
    """The connection behind a client's: to one port of one sandbox, or to Corral's own door, and never to another."""

    target: Target
    side: Side
    box: Box | None

    def serves(self, target: Target) -> bool:
        same = (self.target.sandbox, self.target.port, self.target.door) == (target.sandbox, target.port, target.door)
        return same and not self.side.spent and (self.box is None or self.box.alive)

    def close(self) -> None:
        self.side.duplex.close()
        if self.box is not None:
            self.box.hung_up()
            self.box = None


class Proxy:
    """All connections of the process."""

    def __init__(self, desk: Desk, boxes: Boxes) -> None:
        self._desk = desk
        self._boxes = boxes
        self._keys: dict[tuple[str, str], bool] = {}
        self._forgotten = 0
        """How often they were."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[_Client] = set()
        self._door = ("", 0)
        self.front = False
        self.table = Table(())
        self._own = self.table.own_headers()
        self._tokens = self.table.token_headers()

    def configure(self, table: Table, door: tuple[str, int], *, front: bool) -> None:
        """`door`: where the server answers what is Corral's own. `front`: whether a proxy of this machine stands before us."""
        self.table, self._door, self.front = table, door, front
        self._own, self._tokens = table.own_headers(), table.token_headers()

    def forget_keys(self) -> None:
        """Each is asked for again."""
        self._keys.clear()
        self._forgotten += 1

    def look_again(self, sandbox: str | None = None) -> None:
        """Who may see its ports has changed; None: a key was revoked. What is under way, as websockets and tunnels are for long, ends where it would not begin now."""
        if sandbox is None:
            self.forget_keys()
        for client in self._clients:
            client.look_again(sandbox)

    def accept(self, connection: Connection) -> None:
        if len(self._tasks) >= CONNECTIONS:
            connection.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: Connection) -> None:
        client = _Client(self, connection)
        self._clients.add(client)
        try:
            await client.serve()
        except Truncated:
            connection.abort()
        except Broken:
            pass
        finally:
            self._clients.discard(client)
            client.leave()
            connection.close()

    # What a client needs

    async def admitted(self, asked: Request, target: Target, came: float) -> tuple[Box | None, access.Signed | None]:
        """The sandbox, for those who may see it: only for them one that sleeps is woken. None: it goes to Corral's own door. A link to be made a cookie is returned.
        `came`: when they came, which is what a link's time is held against.

        Raises `Refusal`.
        """
        if target.door is not None or target.sandbox is None:
            return None, None
        box = await self._boxes.find(target.sandbox, people=_is_people(asked))
        link = await self._admit(asked, target, box, came)
        if isinstance(box, Asleep):
            box = await self._boxes.wake(box.id, people=_is_people(asked))
            # That takes a while, in which it may have been taken back.
            link = await self._admit(asked, target, box, came)
        return box, link

    async def still_admitted(self, asked: Request, target: Target, box: Box, came: float) -> bool:
        """Whether who came then and was let in would be now; a link or cookie that has run out since then has not been taken back."""
        given = access.credentials(asked, self._tokens, target.by)
        verdict = access.decide(given, box.settings, target, asked, now=came)
        try:
            return verdict in (Verdict.ALLOWED, Verdict.TO_COOKIE) or (given.key is not None and await self._key_opens(given.key, box))
        except Refusal:
            return True  # there is no server just now, and so nobody who would have taken it back

    async def _admit(self, asked: Request, target: Target, box: Box | Asleep, came: float) -> access.Signed | None:
        link = await self._opened(asked, target, box, came)
        if target.name is None and not box.settings.shows(target.port):
            hint = "create a sandbox with this one among its `ports`, or without `ports`"
            raise Refusal(403, "forbidden", f"the sandbox {box.id} does not show port {target.port}", hint, title="This port is not shown")
        return link

    async def _opened(self, asked: Request, target: Target, box: Box | Asleep, came: float) -> access.Signed | None:
        given = access.credentials(asked, self._tokens, target.by)
        verdict = access.decide(given, box.settings, target, asked, now=came)
        if verdict is Verdict.CHECK_KEY:
            assert given.key is not None
            if await self._key_opens(given.key, box):
                return None
            message = "this API key is unknown or revoked, or belongs to another project, or may only look"
            raise Refusal(403, "forbidden", message, "use a key of the sandbox's project with the role member or admin", title="Not yours to see")
        match verdict:
            case Verdict.ALLOWED:
                return None
            case Verdict.TO_COOKIE:
                return given.link if _is_people(asked) else None
            case Verdict.NOTHING_GIVEN:
                hint = "ask its owner for a signed link, send an API key as the header Corral-Key, or make the port public"
                message = f"port {target.port} of the sandbox {box.id} is private"
                status, code = (403, "forbidden") if box.settings.forbids else (401, "unauthenticated")
                raise Refusal(status, code, message, hint, title="This preview is private")
            case Verdict.EXPIRED:
                raise Refusal(403, "link_expired", "the link has expired", "ask for a new one", title="This link has expired")
            case Verdict.OTHER_PATH:
                raise Refusal(403, "forbidden", "the link is for another path of this preview", "ask for a link to this one", title="Not part of the link")
            case Verdict.OTHER_PAGE:
                raise Refusal(403, "forbidden", "the request comes from a page of another site", "open the preview itself", title="Asked from elsewhere")
            case Verdict.WRONG:
                raise Refusal(403, "forbidden", "the token, link or cookie is not valid (any more)", "ask for a new one", title="This link is not valid")

    async def _key_opens(self, key: str, box: Box | Asleep) -> bool:
        known = (key, box.project)
        while (opens := self._keys.get(known)) is None:
            forgotten = self._forgotten
            answer, _ = await self._desk.ask(ask="key", key=key, project=box.project)
            if forgotten != self._forgotten:
                continue  # it may be the one that was revoked just after the answer
            if not answer["opens"]:
                return False
            if len(self._keys) >= 10_000:
                self._keys.clear()
            self._keys[known] = True
        return opens

    async def dial(self, target: Target, box: Box | None, *, people: bool) -> Far:
        """Raises `Refusal`."""
        if box is not None:
            try:
                stream = await box.dial(target.port)
            except Refusal as refusal:
                if refusal.code != "port_closed" or not await self._boxes.serve(box, target.port, people=people):
                    raise
                stream = await box.dial(target.port)
            return Far(target, Side.of(stream), box)
        try:
            _, connection = await asyncio.get_running_loop().create_connection(Connection, *self._door)
        except OSError:
            raise Refusal(503, "unavailable", "Corral's server does not answer", "try again in a moment", retry=2) from None
        return Far(target, Side.of(connection), None)

    def head(self, asked: Request, target: Target, origin: Origin, box: Box | None) -> bytes:
        if box is None:
            return onward.to_server(asked, target, origin)
        return onward.request(asked, target, origin, own=self._own, host=box.settings.host(target.port))


class _Client:
    """One connection."""

    def __init__(self, proxy: Proxy, connection: Connection) -> None:
        self._proxy = proxy
        self._connection = connection
        self._side = Side.of(connection)
        self._far: Far | None = None
        self._origin = Origin(connection.peer, connection.secure)
        """Of the request that is being answered."""
        self._serving: tuple[Request, Target, Box, float] | None = None
        """That request and who answers it, and when it came."""
        self._task = asyncio.current_task()
        self._looking: asyncio.Task[None] | None = None

    def leave(self) -> None:
        if self._far is not None:
            self._far.close()
            self._far = None

    def look_again(self, sandbox: str | None) -> None:
        """Who may see a sandbox's ports, or whatever is behind a key, has changed."""
        if self._serving is not None and sandbox in (None, self._serving[2].id):
            self._looking = asyncio.get_running_loop().create_task(self._look_again(self._serving))

    async def _look_again(self, serving: tuple[Request, Target, Box, float]) -> None:
        if not await self._proxy.still_admitted(*serving) and self._serving is serving and self._task is not None:
            self._connection.abort()
            self._task.cancel()

    async def serve(self) -> None:
        first = True
        while True:
            try:
                asked = await self._next(HEAD_SECONDS if first else IDLE_SECONDS)
            except BadHead as error:
                await self._side.write(answers.encode(answers.of_bad_head(error), None, close=True))
                return
            if asked is None or not await self._answer(asked):
                return
            first = False

    async def _next(self, patience: float) -> Request | None:
        """None: the client has left, or has said nothing for too long."""
        try:
            async with asyncio.timeout(patience):
                data = await self._side.inlet.read()
        except TimeoutError:
            return None
        if not data:
            return None
        self._side.inlet.put_back(data)
        if not data.startswith(b"\r\n") and 0 < len(data) <= heads.SIZE and data.find(heads.END) == len(data) - len(heads.END):
            raw = await self._side.inlet.head(heads.SIZE, skip_lines=True)  # nothing to wait for
            return None if raw is None else heads.request(raw)
        try:
            async with asyncio.timeout(HEAD_SECONDS):
                raw = await self._side.inlet.head(heads.SIZE, skip_lines=True)
        except TimeoutError:
            raise BadHead(408, f"the head was not whole after {HEAD_SECONDS:g} s", code="timeout") from None
        return None if raw is None else heads.request(raw)

    async def _answer(self, asked: Request) -> bool:
        """Whether another request may follow."""
        # Once its body is not read the connection can't be used further.
        close = not asked.persistent or asked.chunked or bool(asked.length)
        self._origin = onward.origin(asked, self._connection.peer, secure=self._connection.secure, front=self._proxy.front)
        try:
            target, came = self._proxy.table.find(asked), time.time()
            try:
                return await self._serve(asked, target, came, close=close)
            except Refusal as refusal:
                if refusal.code != "paused":
                    raise
            # Just before it could be connected with: it is woken for that, once.
            return await self._serve(asked, target, came, close=close)
        except BadHead as error:
            await self._side.write(answers.encode(answers.of_bad_head(error), asked, close=close))
        except Refusal as refusal:
            await self._side.write(answers.encode(refusal, asked, close=close))
        finally:
            self._serving = None
        return not close

    async def _serve(self, asked: Request, target: Target, came: float, *, close: bool) -> bool:
        """As `_answer`. Raises `Refusal`, of the code "paused" only before anything was sent on."""
        box, link = await self._while_there(self._proxy.admitted(asked, target, came))
        if link is not None:
            path = asked.path
            query = access.without_link(asked.query)
            cookie = access.cookie(link, secure=self._origin.secure, now=time.time())
            location = (b"/" + path.lstrip(b"/")) + (b"" if query is None else b"?" + query)
            await self._side.write(answers.redirect(location, [(b"Set-Cookie", cookie)], close=close))
            return not close
        if box is not None:
            self._serving = (asked, target, box, came)
        if box is not None and target.tunnel:
            await tunnel.serve(asked, self._side, box, target)
            return False
        return await self._pass(asked, target, box)

    async def _pass(self, asked: Request, target: Target, box: Box | None) -> bool:
        if self._far is not None and not self._far.serves(target):
            self.leave()
        again = self._far is not None
        if self._far is None:
            self._far = await self._while_there(self._proxy.dial(target, box, people=_is_people(asked)))
        try:
            return await self._exchange(asked, target, box, self._far)
        except NothingCame as error:
            self.leave()
            # It may have ended a kept connection just when it was used once more.
            if not again or asked.chunked or asked.length or asked.method not in access.SAFE or asked.upgrade:
                raise Refusal(502, "bad_gateway", f"no answer came: {error}", "look at the log of the server in the sandbox") from None
        except BaseException:
            self.leave()
            raise
        self._far = await self._while_there(self._proxy.dial(target, box, people=_is_people(asked)))
        try:
            return await self._exchange(asked, target, box, self._far)
        except NothingCame as error:
            self.leave()
            raise Refusal(502, "bad_gateway", f"no answer came: {error}", "look at the log of the server in the sandbox") from None
        except BaseException:
            self.leave()
            raise

    async def _exchange(self, asked: Request, target: Target, box: Box | None, far: Far) -> bool:
        def encode(answer: Response, *, persists: bool) -> bytes:
            waits.end()
            if box is None:
                return onward.from_server(answer, minor=asked.minor, persists=persists)
            host, secure = box.settings.host(target.port), self._origin.secure
            return onward.response(answer, target, asked, host=host, secure=secure, persists=persists)

        used: Callable[[], None] = _nothing if box is None else box.used
        waits = _Waiting(box)
        sent = self._proxy.head(asked, target, self._origin, box)
        upgrade = onward.upgrade_of(asked) is not None
        try:
            done = await self._while_there(exchange(asked, sent, self._side, far.side, encode=encode, used=used, upgrade=upgrade))
        finally:
            waits.end()
        if done.upgraded:
            await splice(self._side, far.side, used)
            return False
        if not done.far_persists:
            self.leave()
        return done.near_persists

    async def _while_there(self, doing: Coroutine[object, object, T]) -> T:
        """Do it unless the client leaves; one that has only ended its own direction gets a while longer."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        connection = self._connection
        left = False
        timer: asyncio.TimerHandle | None = None

        def leave() -> None:
            nonlocal left
            left = True
            task.cancel()

        def ended() -> None:
            nonlocal timer
            if timer is not None:
                timer.cancel()
            timer = loop.call_later(0 if connection.lost else LINGER_SECONDS, leave)

        if connection.lost:
            doing.close()
            raise Broken("the client has left")
        connection.on_ended = ended
        if connection.ended:
            ended()
        try:
            return await doing
        except asyncio.CancelledError:
            if not left:
                raise
            task.uncancel()
            raise Broken("the client has left") from None
        finally:
            connection.on_ended = None
            if timer is not None:
                timer.cancel()


class _Waiting:
    """While an answer is awaited its sandbox is not frozen."""

    def __init__(self, box: Box | None) -> None:
        self._box = box
        if box is not None:
            box.waiting(on=True)

    def end(self) -> None:
        if self._box is not None:
            self._box.waiting(on=False)
            self._box = None


def _is_people(asked: Request) -> bool:
    return b"text/html" in b",".join(asked.names.get(b"accept", ()))


def _nothing() -> None:
    pass
