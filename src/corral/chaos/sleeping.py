"""Deeds with memory: pausing, resuming, forking. What ran goes on, and what it prints is known to the last byte."""

from __future__ import annotations

from collections.abc import Iterable

from corral.chaos.deeds import TAG, Context
from corral.chaos.kept import copy
from corral.chaos.known import Known, Printed


async def pause(context: Context, known: Known) -> None:
    """Put it away, and have it back at once or by its next use."""
    known.pause_asked = True
    await known.sandbox.pause()
    if context.rng.random() < 0.7:
        await known.sandbox.resume()
        known.pause_asked = False


async def fork(context: Context, known: Known) -> Known:
    """Another sandbox in which everything goes on."""
    files, once, printed = copy(known.files), set(known.once), branched(known.printed, known.life)
    (kid,) = await known.sandbox.fork([{"tags": {TAG: context.step}}])
    return Known(kid, context.step, known.home, files=files, has_volume=known.has_volume, once=once, printed=printed)


def branched(printed: Iterable[Printed], life: int) -> list[Printed]:
    """The processes of this life of a sandbox, as one has them that goes its own way from now on."""
    return [Printed(one.id, one.script, dict(one.most)) for one in printed if one.life == life]
