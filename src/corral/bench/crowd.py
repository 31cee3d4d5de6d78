"""burst and density: many at once, and many for long."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from corral import Client, CorralError, Sandbox, aio
from corral.bench.figure import Figure, Floor, percentile, timed
from corral.sdk.connection import Connection

IDLE_SECONDS = 10.0
_AT_ONCE = 16
"""Creates under way while the density figure fills the machine."""


def burst(client: Client, n: int, image: str) -> Figure:
    """`n` callers at once, each from create to the first result; the floor is one alone."""
    alone = [timed(lambda: _one(client, image)) for _ in range(5)]
    samples, failures, cold = asyncio.run(_all_at_once(client.connection, n, image))
    return Figure("burst", "ms", samples, failures, Floor("one alone", alone), {"image": image, "cold": cold})


def _one(client: Client, image: str) -> None:
    with client.sandboxes.create(image) as sandbox:
        sandbox.run(["/bin/true"]).check()


async def _all_at_once(where: Connection, n: int, image: str) -> tuple[list[float], int, int]:
    made: list[aio.Sandbox] = []

    async def one(client: aio.Client) -> float | None:
        began = time.perf_counter()
        try:
            sandbox = await client.sandboxes.create(image, wait=60)
            made.append(sandbox)
            (await sandbox.run(["/bin/true"])).check()
        except CorralError:
            return None
        return (time.perf_counter() - began) * 1000

    async with aio.Client(where.url, where.key, project=where.project) as client:
        try:
            took = await asyncio.gather(*(one(client) for _ in range(n)))
        finally:
            cold = sum(sandbox.timing.get("cold") == 1 for sandbox in made)
            if made:
                await client.sandboxes.delete([sandbox.id for sandbox in made])
    samples = [one for one in took if one is not None]
    return samples, n - len(samples), cold


def density(client: Client, n: int, image: str) -> Figure:
    """`n` sandboxes living at once: what each weighs, what the host burns while they idle, and how each answers at the end. On the server's machine.

    Then the same with a program that sleeps in each: Python where the image has it, else `sleep`.
    """
    before = _available()
    boxes, failures = asyncio.run(_fill(client.connection, n, image))
    try:
        living = [client.sandboxes.get(id) for id in boxes]
        time.sleep(IDLE_SECONDS)  # the figure: how much happens while nobody asks for anything
        weight = (before - _available()) / 1024 / max(1, len(boxes))
        busy = _busy(IDLE_SECONDS)
        samples: list[float] = []
        for sandbox in living:
            took = _answer(sandbox)
            if took is None:
                failures += 1
            else:
                samples.append(took)
        again = [took for sandbox in living[-20:] if (took := _answer(sandbox)) is not None]
        sleeper = _send_to_sleep(living)
        time.sleep(IDLE_SECONDS)  # until those that were woken sleep as long as they ever will between two looks
        asleep_weight = (before - _available()) / 1024 / max(1, len(boxes))
        asleep_busy = _busy(IDLE_SECONDS)
    finally:
        if boxes:
            client.sandboxes.delete(boxes)
    more = {"image": image, "living": len(boxes), "memory_each_mib": weight, "host_cpu_percent": busy, "awake_p50": percentile(again, 50)}
    more |= {"sleeper": sleeper, "sleeper_memory_each_mib": asleep_weight, "sleeper_host_cpu_percent": asleep_busy}
    return Figure("density", "ms", samples, failures, Floor("the same, awake", again), more)


async def _fill(where: Connection, n: int, image: str) -> tuple[list[str], int]:
    boxes: list[str] = []
    limit, failures = asyncio.Semaphore(_AT_ONCE), 0

    async def one(client: aio.Client) -> None:
        nonlocal failures
        async with limit:
            try:
                boxes.append((await client.sandboxes.create(image, memory=128, wait=120)).id)
            except CorralError:
                failures += 1

    async with aio.Client(where.url, where.key, project=where.project) as client:
        await asyncio.gather(*(one(client) for _ in range(n)))
    return boxes, failures


def _send_to_sleep(boxes: list[Sandbox]) -> str:
    """Start a program in each that does nothing for hours; which."""
    has_python = bool(boxes) and boxes[0].run(["/bin/sh", "-c", "command -v python3"]).ok
    words = ("python3", "-c", "import time; print('asleep', flush=True); time.sleep(100000)") if has_python else ("sh", "-c", "echo asleep; exec sleep 100000")

    def start(box: Sandbox) -> None:
        next(iter(box.exec(*words).stdout))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        list(threads.map(start, boxes))
    return words[0]


def _answer(sandbox: Sandbox) -> float | None:
    try:
        return timed(lambda: sandbox.run(["/bin/true"]).check())
    except CorralError:
        return None


def _available() -> int:
    """KiB of memory that could still be used."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _busy(seconds: float) -> float:
    """Percent of all cores in use over that time."""

    def reading() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(ticks), ticks[3] + ticks[4]

    total, idle = reading()
    time.sleep(seconds)
    total_after, idle_after = reading()
    return 100 * (1 - (idle_after - idle) / max(1, total_after - total)) * (os.cpu_count() or 1)
