"""Who may start: fairness, patience, and that places are never lost."""

from __future__ import annotations

import asyncio

import pytest

from corral.control.admission import HEADROOM, START_MEMORY, Capacity, Gate
from corral.errors import InvalidArgument, Unavailable

ROOMY = Capacity(memory=10_000, memory_free=9_000, disk=10_000, disk_free=9_000, cores=4)
FULL = Capacity(memory=10_000, memory_free=999, disk=10_000, disk_free=9_000, cores=4)


class Machine:
    """A machine whose memory the test sets."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity

    def __call__(self) -> Capacity:
        return self.capacity


async def test_only_so_many_start_at_once() -> None:
    gate = Gate(lambda: ROOMY, places=2)
    starting = peak = 0

    async def start() -> None:
        nonlocal starting, peak
        async with gate.turn("p", wait=0):
            starting += 1
            peak = max(peak, starting)
            await asyncio.sleep(0)
            starting -= 1

    await asyncio.gather(*(start() for _ in range(20)))
    assert peak == 2
    assert gate.waiting == 0


async def test_projects_take_turns() -> None:
    gate = Gate(lambda: ROOMY, places=1)
    order: list[str] = []
    release = asyncio.Event()

    async def start(project: str) -> None:
        async with gate.turn(project, wait=0):
            order.append(project)
            await release.wait()

    tasks = [asyncio.create_task(start(project)) for project in ("big",) * 5 + ("small",) * 2]
    while gate.waiting < 6:
        await asyncio.sleep(0)
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["big", "big", "small", "big", "small", "big", "big"]


async def test_a_full_node_refuses_at_once_or_when_patience_is_over() -> None:
    gate = Gate(lambda: FULL, places=4)
    for wait in (0, 0.01):
        with pytest.raises(Unavailable, match="999 MiB of 10000 MiB of memory are free"):
            async with gate.turn("p", wait=wait):
                raise AssertionError("there was no room")
    assert gate.waiting == 0


async def test_who_waits_starts_when_there_is_room() -> None:
    machine = Machine(FULL)
    gate = Gate(machine, places=4)

    async def start() -> str:
        async with gate.turn("p", wait=60):
            return "started"

    waiting = asyncio.create_task(start())
    while not gate.waiting:
        await asyncio.sleep(0)
    machine.capacity = ROOMY
    gate.look()
    assert await waiting == "started"


async def test_room_that_comes_by_itself_is_noticed() -> None:
    machine = Machine(FULL)
    gate = Gate(machine, places=4)

    async def start() -> str:
        async with gate.turn("p", wait=60):
            return "started"

    waiting = asyncio.create_task(start())
    while not gate.waiting:
        await asyncio.sleep(0)
    machine.capacity = ROOMY
    assert await waiting == "started"


async def test_those_that_start_count_before_their_memory_shows() -> None:
    just_one = Capacity(memory=10_000, memory_free=int(10_000 * HEADROOM) + START_MEMORY, disk=10_000, disk_free=9_000, cores=4)
    gate = Gate(lambda: just_one, places=9)
    async with gate.turn("p", wait=0), gate.turn("p", wait=0):
        with pytest.raises(Unavailable):
            async with gate.turn("p", wait=0):
                raise AssertionError("there was no room")


async def test_who_needs_more_room_lets_others_pass() -> None:
    gate = Gate(lambda: ROOMY, places=9)
    waiting = asyncio.create_task(anext_turn(gate, wait=60, memory=8_500))
    while not gate.waiting:
        await asyncio.sleep(0)
    async with gate.turn("p", wait=0), gate.turn("q", wait=0, memory=7_000):
        with pytest.raises(Unavailable, match="1000 are kept so, and 2000 are to be reserved"):
            await anext_turn(gate, memory=2_000)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert gate.waiting == 0


async def test_what_was_promised_is_nobody_elses() -> None:
    gate = Gate(lambda: ROOMY, places=9)
    gate.promised = lambda: 7_000
    await anext_turn(gate, memory=1_000)
    with pytest.raises(Unavailable):
        await anext_turn(gate, memory=1_001)
    gate.promised = lambda: 8_001
    with pytest.raises(Unavailable, match="999 MiB of 10000 MiB of memory are free, and 1000 are kept so"):
        await anext_turn(gate)


async def test_what_is_kept_for_one_who_comes_back_is_nobody_elses() -> None:
    gate = Gate(lambda: ROOMY, places=9)
    with gate.keep(7_000):
        with pytest.raises(Unavailable):
            await anext_turn(gate, memory=1_001)
        waiting = asyncio.create_task(anext_turn(gate, wait=60, memory=1_001))
        while not gate.waiting:
            await asyncio.sleep(0)
    await waiting


def test_a_reservation_that_can_never_be_met_is_refused_at_once() -> None:
    ROOMY.check(cpu=1, memory=9_500, disk=1)
    with pytest.raises(InvalidArgument, match="than this machine can reserve"):
        ROOMY.check(cpu=1, memory=9_500, disk=1, reserve=True)


async def test_callers_that_leave_lose_no_place() -> None:
    gate = Gate(lambda: ROOMY, places=1)
    for _ in range(3):
        async with gate.turn("p", wait=0):
            waiting = [asyncio.create_task(anext_turn(gate)) for _ in range(5)]
            while gate.waiting < 5:
                await asyncio.sleep(0)
            for task in waiting[:3]:
                task.cancel()
        # One more in the moment in which its turn comes.
        waiting[3].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert gate.waiting == 0
    async with gate.turn("p", wait=0):
        pass


async def anext_turn(gate: Gate, wait: float = 0, memory: int = 0) -> None:
    async with gate.turn("p", wait=wait, memory=memory):
        pass


@pytest.mark.parametrize(("wanted", "field"), [({"cpu": 5}, "cpu"), ({"memory": 10_001}, "memory"), ({"disk": 10_001}, "disk")])
def test_what_the_machine_will_never_have_is_refused_by_name(wanted: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        ROOMY.check(**{"cpu": 1, "memory": 1, "disk": 1, **wanted})
    assert refused.value.details["field"] == field


async def test_a_server_that_leaves_lets_nobody_wait() -> None:
    gate = Gate(lambda: FULL, places=4)
    waiting = asyncio.create_task(anext_turn(gate, wait=600))
    while not gate.waiting:
        await asyncio.sleep(0)
    gate.close()
    with pytest.raises(Unavailable, match="leaving"):
        await waiting
