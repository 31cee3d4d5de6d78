"""What E2B's client costs over Corral's own: create, and a hundred commands at once. Needs the package e2b and a server that is up.

CORRAL_URL=http://127.0.0.1:7070 CORRAL_API_KEY=ck_… scripts/e2b_bench.py [creates]
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable

from e2b import AsyncSandbox, Sandbox
from e2b.connection_config import ApiParams

import corral

URL, KEY = os.environ["CORRAL_URL"], os.environ["CORRAL_API_KEY"]
ACCESS: ApiParams = {"api_key": "e2b_" + KEY.removeprefix("ck_"), "api_url": URL, "sandbox_url": URL}


def main(rounds: int) -> None:
    ways: dict[str, Callable[[], float]] = {"corral": _native, "e2b": _through_e2b}
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        # In turns, so that what else the machine does falls on both.
        for name, create in ways.items():
            took[name].append(create())
    for name, times in took.items():
        print(f"create with {name}: p50 {statistics.median(times) * 1000:.1f} ms of {rounds}, greatest {max(times) * 1000:.1f} ms")
    for _ in range(3):
        print(f"100 commands.run at once through one client: {asyncio.run(_hundred()):.2f} s")


def _native() -> float:
    began = time.perf_counter()
    box = corral.Sandbox.create("base")
    ended = time.perf_counter()
    box.delete()
    time.sleep(0.3)  # the pool makes another member
    return ended - began


def _through_e2b() -> float:
    began = time.perf_counter()
    box = Sandbox.create("base", **ACCESS)
    ended = time.perf_counter()
    box.kill()
    time.sleep(0.3)
    return ended - began


async def _hundred() -> float:
    box = await AsyncSandbox.create("base", **ACCESS)
    await box.commands.run("true")
    began = time.perf_counter()
    results = await asyncio.gather(*(box.commands.run(f"echo {number}") for number in range(100)))
    ended = time.perf_counter()
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(100)]
    await box.kill()
    return ended - began


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
