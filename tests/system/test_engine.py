"""Sandboxes on the engine alone: they start, run, end for a reason, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from corral.errors import InvalidState
from corral.node import loop
from corral.node.disks import PoolDisks
from corral.node.limits import limits
from corral.node.urpc import SentryGone
from corral.places import Places
from corral.schema.sandbox import Reason
from harness import homes, leaks
from harness.engine import PATIENCE, EngineHome, engine_home

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
async def home(shared: Places) -> AsyncIterator[EngineHome]:
    async with engine_home(shared) as home:
        yield home


async def test_a_claimed_sandbox_runs_commands_on_its_image(home: EngineHome) -> None:
    box = await home.claim()
    assert await box.run("echo hello; exit 3") == (3, "hello\n")
    assert (await box.run("cat /proc/sys/kernel/hostname"))[1] == "box\n"
    await home.remove(box)


async def test_files_survive_the_sandbox_and_are_there_when_it_starts_again(home: EngineHome) -> None:
    box = await home.claim()
    await box.run("echo kept > /kept; mkdir /d; rm /bin/yes")
    box.leave()
    await home.engine.kill(box.id)
    again = await home.claim(box.box.spec)
    assert await again.run("cat /kept; ls -d /d; ls /bin/yes") == (1, "kept\n/d\n")
    await home.remove(again)


async def test_a_sentry_keeps_no_disk_that_was_mounted_when_it_was_started(shared: Places) -> None:
    """Of another home, or of a sandbox of its own that is deleted later."""
    with homes.without_engine("disks") as others:
        disks = PoolDisks(others, default_mib=64, stock=2, pool_bytes=2 << 30)
        await disks.open()
        async with engine_home(shared) as home:
            box = await home.claim()
            await disks.shutdown()
            async with asyncio.timeout(PATIENCE):
                while loop.behind_device(others.pool_image):
                    await asyncio.sleep(0.05)
            assert await box.run("echo on") == (0, "on\n")
            await home.remove(box)


async def test_two_sandboxes_of_one_image_do_not_see_each_other(home: EngineHome) -> None:
    one, two = await home.claim(), await home.claim()
    await one.run("echo secret > /secret")
    assert await two.run("ls /secret") == (1, "")
    assert "sleep" not in (await two.run("ps"))[1]
    await home.remove(one, two)


async def test_an_empty_pool_makes_a_sandbox_all_the_same(home: EngineHome) -> None:
    boxes = await asyncio.gather(*(home.claim() for _ in range(4)))
    cold = [box.timing["start"] for box in boxes if box.timing["cold"]]
    assert len(cold) >= 2
    assert all(cold)
    assert [await box.run("echo ok") for box in boxes] == [(0, "ok\n")] * 4
    await home.remove(*boxes)


async def test_a_second_claim_of_a_running_sandbox_is_refused(home: EngineHome) -> None:
    box = await home.claim()
    with pytest.raises(InvalidState):
        await home.engine.claim(box.box.spec)
    assert await box.run("true") == (0, "")
    await home.remove(box)


async def test_a_claim_that_fails_leaves_nothing(home: EngineHome) -> None:
    spec = home.spec()
    broken = type(spec)(**{**vars(spec), "image": type(spec.image)("im-x", None, (home.places.home / "missing",))})
    with pytest.raises(Exception, match="missing"):
        await home.engine.claim(broken)
    await home.disks.remove(spec.id)
    assert spec.id not in leaks.of_sandboxes(home.places)


async def test_killing_what_is_not_there_is_no_error(home: EngineHome) -> None:
    await home.engine.kill("sb-aaaaaaaaaaaaaaaa")


@pytest.mark.parametrize("victim", ["sentry", "gofer"])
async def test_a_sandbox_killed_from_outside_says_so_and_keeps_its_disk(home: EngineHome, victim: str) -> None:
    box = await home.claim()
    await box.run("echo kept > /kept")
    identity = box.box.member.sentry.identity
    os.kill(identity.pid if victim == "sentry" else identity.gofer, signal.SIGKILL)
    ended = await home.next_end()
    assert (ended.id, ended.reason, ended.disk_kept) == (box.id, Reason.KILLED, True)
    again = await home.claim(box.box.spec)
    assert await again.run("cat /kept") == (0, "kept\n")
    await home.remove(again)


async def test_a_sentry_that_ends_while_its_guest_stands_still_is_told_as_gone(home: EngineHome) -> None:
    box = await home.claim()
    sentry = box.box.member.sentry.identity.pid
    with pytest.raises(SentryGone):
        async with home.engine.still(box.id):
            os.kill(sentry, signal.SIGKILL)
            # Until it is gone, and nobody here has heard of it yet.
            while Path(f"/proc/{sentry}").exists():
                os.sched_yield()
    assert (await home.next_end()).reason is Reason.KILLED
    await home.remove(box)


async def test_memory_beyond_the_limit_ends_the_sandbox_with_oom(home: EngineHome) -> None:
    box, sibling = await home.claim(home.spec(memory=128)), await home.claim()
    await box.run("echo kept > /kept")
    await box.start("dd if=/dev/zero of=/dev/null bs=1000M count=1")
    ended = await home.next_end()
    assert (ended.id, ended.reason) == (box.id, Reason.OOM)
    assert await sibling.run("echo alive") == (0, "alive\n")
    again = await home.claim(box.box.spec)
    assert await again.run("cat /kept") == (0, "kept\n")
    await home.remove(again, sibling)


async def test_file_cache_is_not_held_against_a_sandbox(home: EngineHome) -> None:
    box = await home.claim(home.spec(memory=64))
    assert (await box.run("dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null && wc -c < /big"))[1] == f"{200 << 20}\n"
    await home.remove(box)


async def test_many_processes_fit_the_limit_of_the_host(home: EngineHome) -> None:
    box = await home.claim(home.spec(memory=512, pids=200))
    assert await box.run("for i in $(seq 150); do sleep 100 & done; echo started") == (0, "started\n")
    assert box.box.sample().processes > 150
    assert await box.run("echo alive") == (0, "alive\n")
    await home.remove(box)


async def test_a_frozen_sandbox_uses_no_processor_and_goes_on_when_thawed(home: EngineHome) -> None:
    box = await home.claim()
    assert await box.run("true") == (0, "")
    box.box.freeze()
    async with asyncio.timeout(PATIENCE):
        while Path(f"/proc/{box.box.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
            await asyncio.sleep(0.01)
    before = box.box.cpu_seconds()
    await asyncio.sleep(1)
    assert box.box.cpu_seconds() - before < 0.01
    box.box.thaw()
    assert await box.run("echo back") == (0, "back\n")
    await home.remove(box)


async def test_a_frozen_sandbox_can_be_killed(home: EngineHome) -> None:
    box = await home.claim()
    box.box.freeze()
    await home.remove(box)
    assert box.id not in leaks.of_sandboxes(home.places)


async def test_a_waiting_member_that_dies_is_replaced(home: EngineHome) -> None:
    box = await home.claim()
    waiting = [*home.engine._open.pool.waiting(), *home.engine._open.prepared.waiting()]
    ends = [os.pidfd_open(pid) for member in waiting for pid in member.sentry.pids]
    for end in ends:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(end, signal.SIGKILL)
    for end in ends:
        select.select([end], [], [])  # nothing else runs meanwhile: what is claimed next has died, and nobody has told the engine yet
        os.close(end)
    for _ in range(3):
        other = await home.claim()
        assert await other.run("echo ok") == (0, "ok\n")
        await home.remove(other)
    await home.remove(box)


async def test_members_that_wait_use_no_processor(home: EngineHome) -> None:
    """Those for new sandboxes and those for memories that come back: gVisor 20240729 polls even in a sentry that has not started."""
    parts = home.engine._open
    await parts.pool.filled()
    await parts.prepared.filled()
    waiting = [*parts.pool.waiting(), *parts.prepared.waiting()]
    assert len(waiting) == 3
    before = sum(member.group.cpu_seconds() for member in waiting)
    await asyncio.sleep(2)
    assert sum(member.group.cpu_seconds() for member in waiting) - before < 0.02


async def test_a_waiting_member_becomes_a_sandbox_of_any_size(home: EngineHome) -> None:
    parts = home.engine._open
    for cpu, memory in ((0.5, 128), (4.0, 1024), (0.25, 64), (1.0, 512)):
        await parts.pool.filled()
        waiting = parts.pool.waiting()
        box = await home.claim(home.spec(cpu=cpu, memory=memory))
        assert box.box.member in waiting
        assert await box.run("echo alive") == (0, "alive\n")
        box.box.member.group.limit(limits(home.spec(cpu=cpu / 2, memory=memory)))
        await home.remove(box)


async def test_a_sandbox_is_confined_on_the_host(home: EngineHome) -> None:
    """What holds on the host when the sandbox kernel itself has been taken over."""
    box = await home.claim()
    identity = box.box.member.sentry.identity
    for pid in (identity.pid, identity.gofer):
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert status["Seccomp"] == "2"
        for namespace in ("user", "mnt", "net", "ipc", "uts"):
            assert Path(f"/proc/{pid}/ns/{namespace}").readlink() != Path(f"/proc/self/ns/{namespace}").readlink()
        assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) > int(Path("/proc/self/oom_score_adj").read_text())
        assert home.places.tag in Path(f"/proc/{pid}/cgroup").read_text()
        assert not Path(f"/proc/{pid}/root/usr").exists()
    await home.remove(box)


async def test_a_hundred_sandboxes_leave_nothing(home: EngineHome) -> None:
    for _ in range(10):
        await home.remove(*await asyncio.gather(*(home.claim() for _ in range(5))))
    for _ in range(50):
        await home.remove(await home.claim())
    assert leaks.of_sandboxes(home.places) == {}
    waiting = {path.name for path in home.places.members.iterdir()}
    assert len(waiting) <= 3
    assert {path.name.partition("_")[0] for path in (home.places.run / "runsc").glob("*.state")} <= waiting
