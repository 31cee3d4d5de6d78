"""One answer for one Idempotency-Key, however often and however concurrently it is asked for.

The same key with the same request gives the answer of the first time; with another request it is an error. A request that failed leaves nothing: the next one is made anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from corral.errors import Conflict, InvalidArgument

KEEP = 86_400.0
"""Seconds for which an answer is given again."""
REMEMBERED = 20_000
LONGEST_KEY = 255


@dataclass(frozen=True)
class Claim:
    """A key of a project, and what it stands for."""

    project: str
    key: str
    fingerprint: str


@dataclass(frozen=True)
class Answer:
    """A status and a body of JSON, as they were sent."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Kept:
    """What is known of a key: its request, what that made (a sandbox's id), and the answer once there was one."""

    claim: Claim
    at: float
    subject: str | None = None
    answer: Answer | None = None


def claim(project: str, key: str, *, method: str, path: str, body: bytes) -> Claim:
    """Raises `InvalidArgument` for a key that can't be one."""
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidArgument(f"Idempotency-Key must have 1 to {LONGEST_KEY} printable characters", details={"field": "Idempotency-Key"})
    digest = hashlib.sha256(b"\0".join((method.encode(), path.encode(), body))).hexdigest()
    return Claim(project, key, digest)


class Replays:
    """Remembers claims and their answers; in memory. The store keeps what has to outlast the server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._running: dict[tuple[str, str], asyncio.Future[Answer]] = {}
        self._claims: dict[tuple[str, str], Claim] = {}

    def load(self, kept: Kept) -> None:
        """What an earlier server knew; the oldest first."""
        self._remember(kept)

    def project_removed(self, project: str) -> None:
        """A later project of its name has made nothing yet."""
        for at in [at for at in self._kept if at[0] == project]:
            del self._kept[at]

    async def once(self, claim: Claim, make: Callable[[], Awaitable[Answer]], *, again: Callable[[str], Awaitable[Answer | None]] | None = None) -> Answer:
        """The answer of the first call with this claim. `again` gives it for what an earlier server made (its subject) when the answer itself was lost."""
        at = (claim.project, claim.key)
        while (running := self._running.get(at)) is not None:
            _same(self._claims[at], claim)
            try:
                return await asyncio.shield(running)
            except asyncio.CancelledError:
                if not running.cancelled():
                    raise
                # Whoever made it was interrupted, and nothing of it is left: it is our turn.
        running = self._running[at] = asyncio.get_running_loop().create_future()
        self._claims[at] = claim
        try:
            answer = await self._known(claim, again)
            if answer is None:
                answer = await make()
                self._remember(Kept(claim, self._clock(), answer=answer))
        except asyncio.CancelledError:
            running.cancel()
            raise
        except BaseException as error:
            running.set_exception(error)
            running.exception()  # it is raised here, whether or not another waits
            raise
        else:
            running.set_result(answer)
            return answer
        finally:
            del self._running[at], self._claims[at]

    async def _known(self, claim: Claim, again: Callable[[str], Awaitable[Answer | None]] | None) -> Answer | None:
        kept = self._kept.get((claim.project, claim.key))
        if kept is None or kept.at < self._clock() - KEEP:
            return None
        _same(kept.claim, claim)
        if kept.answer is None and kept.subject is not None and again is not None:
            return await again(kept.subject)
        return kept.answer

    def _remember(self, kept: Kept) -> None:
        at = (kept.claim.project, kept.claim.key)
        self._kept[at] = kept
        self._kept.move_to_end(at)
        while self._kept and (len(self._kept) > REMEMBERED or next(iter(self._kept.values())).at < self._clock() - KEEP):
            self._kept.popitem(last=False)


def _same(known: Claim, claim: Claim) -> None:
    if known != claim:
        raise Conflict(
            "this Idempotency-Key was used for another request",
            hint="use a fresh key for each request, and the same one only to repeat it",
            details={"key": claim.key},
        )
