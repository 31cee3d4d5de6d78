"""Deeds that keep a disk and go back: snapshots, checkpoints, rewinding."""

from __future__ import annotations

import asyncio

from corral.aio import Snapshot
from corral.chaos.deeds import Context
from corral.chaos.kept import Kept, copy, either
from corral.chaos.known import Known
from corral.chaos.sleeping import branched
from corral.errors import Conflict, NotFound


async def snapshot(context: Context, known: Known) -> None:
    """Keep its disk, and sometimes its memory. What is in it is looked at by those who start from it."""
    name = f"s-{context.step}"
    context.store.doubtful.add(name)
    files = copy(known.files)
    memory = not (known.stopped or known.has_volume) and context.rng.random() < 0.4
    printed = branched(known.printed, known.life) if memory else []
    made = await known.sandbox.snapshot(name, memory=memory)
    context.store.doubtful.discard(name)
    context.store.snapshots[made.id] = Kept(made.id, known, files, printed)
    if memory:
        context.tally.did["snapshot with memory"] += 1


async def drop_snapshot(context: Context, known: Known) -> None:  # noqa: ARG001 - one signature for all deeds
    """Delete one, unless a sandbox stands on it."""
    if not context.store.snapshots:
        return
    kept = context.store.snapshots.pop(context.rng.choice(sorted(context.store.snapshots)))
    context.store.doubtful.add(kept.id)
    try:
        await (await Snapshot.get(kept.id, client=context.client)).delete()
    except Conflict:
        context.store.doubtful.discard(kept.id)
        context.store.snapshots[kept.id] = kept
        context.tally.refused["drop_snapshot: something stands on it"] += 1
    else:
        context.store.doubtful.discard(kept.id)
        try:
            await Snapshot.get(kept.id, client=context.client)
        except NotFound:
            return
        context.tally.violation("came back", context.step, f"the snapshot {kept.id} was deleted and is there")


async def checkpoint(context: Context, known: Known) -> None:
    """Keep its disk in its own history."""
    name, files = f"k-{context.step}", copy(known.files)
    await known.sandbox.checkpoint(name)
    known.checkpoints[name] = files
    # Whoever asked to go back before it has been served, or never will be.
    known.unsure = False


async def rewind(context: Context, known: Known) -> None:
    """Go back to a checkpoint. Until it is answered the disk is the old one or the new one."""
    if not known.checkpoints:
        return
    name = context.rng.choice(sorted(known.checkpoints))
    known.stop_asked = asyncio.get_running_loop().time()
    target = known.checkpoints[name]
    known.files, known.unsure = either(known.files, target), True
    await known.sandbox.rewind(name)
    known.files, known.unsure = copy(target), False
    if known.sandbox.state == "stopped":
        known.ended(known.sandbox.reason)
    else:
        known.life += 1
