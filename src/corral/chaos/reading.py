"""Reads output from any offset, over as many connections as it takes, and compares every byte."""

from __future__ import annotations

from contextlib import aclosing

from corral.aio import Client
from corral.chaos.known import Known, Printed
from corral.chaos.tally import Tally
from corral.schema.process import Process, Stream
from corral.sdk._async import stream
from corral.sdk.output import Seen


async def read(client: Client, known: Known, printed: Printed, tally: Tally, step: str, *, stdout: int = 0, stderr: int = 0) -> None:
    """Follow a process' output from these offsets to its end. What was given to any reader before must be there again.

    Raises what the client may rightly see meanwhile.
    """
    script = printed.script
    seen = Seen(stdout, stderr)
    promised = dict(printed.most)
    end: Process | None = None
    path = f"/v1/sandboxes/{known.id}/processes/{printed.id}"
    async with aclosing(stream.output(client.transport, path, seen)) as items:
        async for item in items:
            if isinstance(item, Process):
                end = item
                continue
            tally.checked["bytes of output"] += len(item.data)
            if wrong := script.differs(item.stream, item.offset, item.data):
                tally.violation("wrong output", step, f"{printed.id} in {known.id}: {wrong}")
            printed.most[item.stream] = max(printed.most[item.stream], item.offset + len(item.data))
    if seen.dropped:
        tally.violation("lost output", step, f"{printed.id} in {known.id}: {seen.dropped} bytes were dropped of a small output")
    if end is not None:
        _judge_end(known, printed, end, seen, promised, tally, step)


def _judge_end(known: Known, printed: Printed, end: Process, seen: Seen, promised: dict[Stream, int], tally: Tally, step: str) -> None:
    tally.checked["outputs read to the end"] += 1
    for which, most in promised.items():
        if seen.at[which] < most:
            detail = f"{printed.id} in {known.id}: {which} ends at {seen.at[which]}, a reader was given {most} bytes before"
            tally.violation("lost output", step, detail)
    if end.lost:
        if not (known.blows or known.stop_asked is not None or known.life > printed.life or known.doomed):
            tally.violation("lost process", step, f"{printed.id} is lost, but nothing happened to its sandbox; {known.why_gone()}")
        return
    printed.ended = True
    if end.exit_code != printed.script.exit_code:
        tally.violation("wrong exit", step, f"{printed.id} in {known.id}: {end.exit_code} (signal {end.signal}) instead of {printed.script.exit_code}")
        return
    for which in Stream:
        if seen.at[which] != len(printed.script.of(which)):
            detail = f"{printed.id} in {known.id}: {which} ends at {seen.at[which]} of {len(printed.script.of(which))} though it ended by itself"
            tally.violation("lost output", step, detail)
