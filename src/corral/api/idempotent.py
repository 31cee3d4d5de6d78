"""The Idempotency-Key header of requests that create something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request

from corral.api.route import raw_body
from corral.api.services import Services
from corral.control import idempotency
from corral.control.idempotency import Answer, Claim, Kept
from corral.control.roles import Actor

Make = Callable[[Claim | None], Awaitable[Answer]]
Again = Callable[[str], Awaitable[Answer | None]]


async def idempotent(request: Request, services: Services, actor: Actor, make: Make, *, again: Again | None = None, secret: bool = False) -> Answer:
    """`make`'s answer, or the one that was given to this key before.

    `again` finds what an earlier server had made and not answered; then `make` writes the claim itself, with what it makes. `secret`: the answer is
    kept in memory only.
    """
    key = request.headers.get("idempotency-key")
    if key is None:
        return await make(None)
    claim = idempotency.claim(actor.project, key, method=request.method, path=request.url.path, body=raw_body(request))
    made = False

    async def first() -> Answer:
        nonlocal made
        made = True
        return await make(claim)

    answer = await services.replays.once(claim, first, again=again)
    if made and not secret:
        if again is not None:
            services.store.replays.answered(claim, answer)
        else:
            services.store.replays.add(Kept(claim, services.clock(), answer=answer))
    return answer
