"""What a client does in one step. Each returns when it was answered and the answer was right or its violation written down; it raises what the client got instead."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from random import Random

from corral.aio import Client, Sandbox
from corral.chaos import reading, script
from corral.chaos.kept import Store, copy
from corral.chaos.known import Known, Printed
from corral.chaos.tally import Tally
from corral.errors import Conflict
from corral.schema.process import Stream

TAG = "chaos-step"
HOMES = {"tiny": "/root", "base": "/home/user"}


@dataclass(frozen=True)
class Context:
    """A step: its dice, its name, who does it, where readers in the background go, and what its client has beyond its sandboxes."""

    rng: Random
    step: str
    client: Client
    tally: Tally
    read_on: Callable[[Awaitable[None], Known, str], None]
    store: Store


async def create(context: Context) -> Known:
    """A sandbox: of an image or of a snapshot, with the client's volume or without."""
    rng, store = context.rng, context.store
    kept = store.snapshots[rng.choice(sorted(store.snapshots))] if store.snapshots and rng.random() < 0.4 else None
    image = rng.choices(("tiny", "base"), (3, 1))[0]
    shares = rng.random() < 0.5
    if shares and not store.volume_made:
        await _make_volume(context)
    sandbox = await context.client.sandboxes.create(
        image if kept is None else kept.id,
        memory=rng.choice((128, 256)),
        disk=rng.choice((256, 1024)),
        cpu=rng.choice((0.5, 1)),
        timeout=None,
        tags={TAG: context.step},
        volumes={"/data": store.volume} if shares else {},
        wait=30,
    )
    if kept is None:
        return Known(sandbox, context.step, HOMES[image], has_volume=shares)
    # A memory that could not be brought back leaves a sandbox that starts cold.
    printed = kept.printed if "restore" in sandbox.timing else []
    return Known(
        sandbox, context.step, kept.source.home, files=copy(kept.files), has_volume=shares, printed=[replace(one, most=dict(one.most)) for one in printed]
    )


async def _make_volume(context: Context) -> None:
    try:
        await context.client.volumes.create(context.store.volume, size=64)
    except Conflict:  # made by an earlier step that was not answered
        pass
    context.store.volume_made = True


async def count(context: Context, known: Known) -> None:
    """A command with known output, waited for."""
    wanted = script.short(context.rng, context.step)
    result = await known.sandbox.run(wanted.command)
    for stream, got in ((Stream.STDOUT, result.stdout_bytes), (Stream.STDERR, result.stderr_bytes)):
        context.tally.checked["bytes of output"] += len(got)
        if wrong := wanted.differs(stream, 0, got):
            context.tally.violation("wrong output", context.step, f"{known.id}: {wrong}")
        elif len(got) != len(wanted.of(stream)):
            context.tally.violation("lost output", context.step, f"{known.id}: {stream} has {len(got)} bytes of {len(wanted.of(stream))}")
    if result.exit_code != wanted.exit_code:
        context.tally.violation("wrong exit", context.step, f"{known.id}: {result.exit_code} instead of {wanted.exit_code}: {result.stderr[-300:]}")


async def echo(context: Context, known: Known) -> None:
    """Standard input comes back as standard output."""
    data = context.rng.randbytes(context.rng.choice((1, 1000, 70_000, 400_000)))
    result = await known.sandbox.run(["cat"], input=data)
    context.tally.checked["bytes of input"] += len(data)
    if result.stdout_bytes != data or result.exit_code != 0:
        at = next((i for i, (a, b) in enumerate(zip(result.stdout_bytes, data, strict=False)) if a != b), min(len(result.stdout_bytes), len(data)))
        detail = f"cat in {known.id} ended with {result.exit_code} and gave {len(result.stdout_bytes)} bytes of {len(data)}, right up to {at}"
        context.tally.violation("wrong input", context.step, detail)


async def fork(context: Context, known: Known) -> None:
    """Many processes at once, each of which says one line."""
    n = context.rng.choice((5, 20))
    result = await known.sandbox.run(f'for i in $(seq {n}); do (echo "{context.step} $i") & done; wait')
    lines, wanted = sorted(result.stdout.splitlines()), sorted(f"{context.step} {i}" for i in range(1, n + 1))
    if lines != wanted or result.exit_code != 0:
        context.tally.violation("wrong output", context.step, f"{n} forks in {known.id} said {lines} and ended with {result.exit_code}: {result.stderr[-300:]}")


async def once(context: Context, known: Known) -> None:
    """A command that changes something: however often the request is sent, it happens once."""
    known.once.add(context.step)
    process = await known.sandbox.exec("/bin/sh", "-c", f"echo {context.step} >> {known.home}/once", stdin=False)
    await process.wait()


async def upload(context: Context, known: Known) -> None:
    """A file: new, or in the place of one whose content is certain."""
    rng, tally = context.rng, context.tally
    data = rng.randbytes(rng.choice((0, 1, 4096, 100_000, 1_500_000)))
    certain = sorted(path for path, digests in known.files.items() if len(digests) == 1)
    path = rng.choice(certain) if certain and rng.random() < 0.3 else f"{known.home}/chaos/{context.step}"
    before = known.files.get(path, {"none"})
    known.files[path] = before | {digest(data)}
    entry = await known.sandbox.files.write(path, _pieces(data) if rng.random() < 0.3 else data)
    known.files[path] = {digest(data)}
    tally.checked["bytes uploaded"] += len(data)
    if entry.size != len(data):
        tally.violation("wrong file", context.step, f"{path} in {known.id}: {entry.size} bytes acknowledged of {len(data)}")


async def download(context: Context, known: Known) -> None:
    """One of its files, whole."""
    if known.files:
        await check_file(context.tally, context.step, known, known.sandbox, context.rng.choice(sorted(known.files)))


async def check_file(tally: Tally, step: str, known: Known, sandbox: Sandbox, path: str, *, allowed: AbstractSet[str] | None = None) -> None:
    """Read a file and compare it with what it may be: what is known of it now, or what is said."""
    allowed = frozenset(known.files[path] if allowed is None else allowed)
    try:
        data = await sandbox.files.read(path)
    except FileNotFoundError:
        if "none" not in allowed:
            tally.violation("lost file", step, f"{path} in {known.id} was acknowledged and is not there; {known.why_gone()}")
        return
    tally.checked["bytes downloaded"] += len(data)
    if digest(data) not in allowed:
        tally.violation("wrong file", step, f"{path} in {known.id}: {len(data)} bytes that nobody wrote ({data[:40]!r}…); {known.why_gone()}")


async def start_printer(context: Context, known: Known) -> None:
    """A process that prints for a while; readers follow it in the background."""
    wanted = script.long(context.rng, context.step)
    process = await known.sandbox.exec("/bin/sh", "-c", wanted.command, stdin=False, text=False)
    printed = Printed(process.id, wanted, life=known.life)
    known.printed.append(printed)
    for _ in range(context.rng.choice((0, 1, 2))):
        context.read_on(reading.read(context.client, known, printed, context.tally, context.step), known, context.step)


async def read_printer(context: Context, known: Known) -> None:
    """Read a printer: one that has ended here and now, one that goes on in the background, from any offset that was reached."""
    if not known.printed:
        return
    rng = context.rng
    printed = rng.choice(known.printed)
    stdout, stderr = (rng.choice((0, rng.randint(0, printed.most[stream]))) for stream in Stream)
    work = reading.read(context.client, known, printed, context.tally, context.step, stdout=stdout, stderr=stderr)
    if printed.ended or known.stopped:
        await work
    else:
        context.read_on(work, known, context.step)


async def stop(context: Context, known: Known) -> None:  # noqa: ARG001 - one signature for all deeds
    known.stop_asked = asyncio.get_running_loop().time()
    await known.sandbox.stop()
    known.ended(known.sandbox.reason)


async def start(context: Context, known: Known) -> None:  # noqa: ARG001
    since = asyncio.get_running_loop().time()
    await known.sandbox.start()
    known.alive(since)


async def delete(context: Context, known: Known) -> None:  # noqa: ARG001
    known.doomed = True
    await known.sandbox.delete()


async def check_once(tally: Tally, step: str, known: Known, sandbox: Sandbox) -> None:
    """No command that may run once ran twice."""
    try:
        words = (await sandbox.files.read(f"{known.home}/once")).decode(errors="replace").split()
    except FileNotFoundError:
        return
    tally.checked["commands run once"] += len(words)
    if twice := sorted({word for word in words if word in known.once and words.count(word) > 1}):
        tally.violation("ran twice", step, f"in {known.id}: {', '.join(twice)}")


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def _pieces(data: bytes) -> AsyncGenerator[bytes, None]:
    for start_at in range(0, len(data), 50_000):
        yield data[start_at : start_at + 50_000]
        await asyncio.sleep(0)
