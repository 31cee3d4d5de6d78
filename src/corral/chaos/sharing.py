"""Deeds with a volume that several sandboxes of one client have: what one writes all others read, whoever is killed."""

from __future__ import annotations

from corral.aio import Sandbox
from corral.chaos.deeds import Context, digest
from corral.chaos.kept import Store
from corral.chaos.known import Known
from corral.chaos.tally import Tally

AT = "/data"


async def put_shared(context: Context, known: Known) -> None:
    """Write a file into the volume: new, or in the place of one whose content is certain."""
    rng, shared = context.rng, context.store.shared
    if not known.has_volume:
        return
    data = rng.randbytes(rng.choice((0, 1, 4096, 100_000, 700_000)))
    certain = sorted(name for name, digests in shared.items() if len(digests) == 1)
    # Few enough to fit its size, however long the run is.
    name = rng.choice(certain) if certain and (len(shared) > 30 or rng.random() < 0.3) else context.step
    shared[name] = shared.get(name, {"none"}) | {digest(data)}
    await known.sandbox.files.write(f"{AT}/{name}", data)
    shared[name] = {digest(data)}
    context.tally.checked["bytes written into volumes"] += len(data)


async def get_shared(context: Context, known: Known) -> None:
    """Read one of the volume's files, which another sandbox may have written just now."""
    if known.has_volume and context.store.shared:
        await check_shared(context.tally, context.step, context.store, known.sandbox, context.rng.choice(sorted(context.store.shared)))


async def check_shared(tally: Tally, step: str, store: Store, sandbox: Sandbox, name: str) -> None:
    """Read a file of the volume and compare it with what it may be."""
    allowed = set(store.shared[name])
    try:
        data = await sandbox.files.read(f"{AT}/{name}")
    except FileNotFoundError:
        if "none" not in allowed:
            tally.violation("lost file", step, f"{name} of the volume {store.volume} was acknowledged and is not there, as {sandbox.id} sees it")
        return
    tally.checked["bytes read from volumes"] += len(data)
    if digest(data) not in allowed:
        tally.violation("wrong file", step, f"{name} of the volume {store.volume}, as {sandbox.id} sees it: {len(data)} bytes that nobody wrote")
