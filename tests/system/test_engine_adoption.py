"""Servers and holders come and go; sandboxes stay."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from corral.errors import SetupError
from corral.node import record, runsc, sentry, urpc
from corral.node.interface import Ended
from corral.node.members import runsc_root
from corral.node.node import Node, NodeSettings
from corral.places import Places
from corral.schema.sandbox import Reason
from harness import leaks
from harness.engine import EngineHome, Inside, engine_home, home_directory, nothing_left
from harness.holder import holder_of

pytestmark = pytest.mark.anyio

SERVER = textwrap.dedent("""
    import asyncio, os, sys
    from pathlib import Path
    from corral.places import Places
    from harness.engine import EngineHome

    async def main():
        home = EngineHome(Places(Path(sys.argv[1])))
        await home.open()
        for number in range(int(sys.argv[2])):
            box = await home.claim()
            await box.run(f"echo {number} > /number")
            await box.start("sleep 1000")
            print(box.id, flush=True)
        print("ready", flush=True)
        await asyncio.sleep(1000)

    asyncio.run(main())
""")


def killed_server(places: Places, count: int) -> list[str]:
    """Have another process claim sandboxes and kill it; returns their ids."""
    argv = [sys.executable, "-c", SERVER, str(places.home), str(count)]
    env = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ids: list[str] = []
        for line in process.stdout:
            if line == "ready\n":
                break
            if line.startswith("sb-"):
                ids.append(line.strip())
        process.kill()
    assert len(ids) == count
    return ids


async def test_sandboxes_outlive_a_killed_server_and_are_adopted(shared: Places) -> None:
    with home_directory(shared) as places:
        ids = killed_server(places, 4)
        home = EngineHome(places)
        boxes = await home.open()
        assert {box.id for box in boxes} == set(ids)
        for box in boxes:
            inside = Inside(home, box)
            await inside.enter()
            assert await inside.run("cat /number") == (0, f"{ids.index(box.id)}\n")
            assert "sleep 1000" in (await inside.run("ps"))[1]
        await home.shutdown()
        await nothing_left(places)


@pytest.mark.parametrize("victim", ["pid", "gofer"])
async def test_one_that_died_without_a_server_is_told_with_its_reason(shared: Places, victim: str) -> None:
    with home_directory(shared) as places:
        dead, alive = killed_server(places, 2)
        os.kill(json.loads((places.boxes / f"{dead}.json").read_text())["identity"][victim], signal.SIGKILL)
        home = EngineHome(places)
        boxes = await home.open()
        assert [box.id for box in boxes] == [alive]
        ended = await home.next_end()
        assert (ended.id, ended.reason, ended.disk_kept) == (dead, Reason.KILLED, True)
        await home.shutdown()
        await nothing_left(places)


async def test_one_whose_end_was_asked_for_when_the_server_was_killed_says_so(shared: Places) -> None:
    with home_directory(shared) as places:
        ended_half, alive = killed_server(places, 2)
        for id in (ended_half, alive):
            record.end(places.boxes, id, Reason.REQUESTED, None)
        os.kill(json.loads((places.boxes / f"{ended_half}.json").read_text())["identity"]["pid"], signal.SIGKILL)
        home = EngineHome(places)
        (adopted,) = await home.open()
        assert adopted.id == alive
        ended = await home.next_end()
        assert (ended.id, ended.reason, ended.disk_kept) == (ended_half, Reason.REQUESTED, True)
        # What was asked of the one that lives on was answered to nobody: its later end is another.
        os.kill(adopted.pid, signal.SIGKILL)
        assert (await home.next_end()).reason is Reason.KILLED
        await home.shutdown()
        await nothing_left(places)


async def test_one_that_was_taken_apart_when_the_server_was_killed_is_told_with_its_reason(shared: Places) -> None:
    with home_directory(shared) as places:
        ids = killed_server(places, 1)
        home = EngineHome(places)
        (box,) = await home.open()
        os.kill(box.pid, signal.SIGKILL)
        assert (await home.next_end()).reason is Reason.KILLED
        # Nothing of it is left to look at, and that its row was stored is not certain.
        assert list(record.read_all(places.boxes)) == []
        await home.close()
        again = EngineHome(places)
        assert await again.open() == []
        told = await again.next_end()
        assert ([told.id], told.reason) == (ids, Reason.KILLED)
        await again.shutdown()
        await nothing_left(places)


async def test_what_a_killed_server_left_of_sandboxes_that_nobody_knows_is_removed(shared: Places) -> None:
    with home_directory(shared) as places:
        kept, alive, dead = killed_server(places, 3)
        os.kill(json.loads((places.boxes / f"{dead}.json").read_text())["identity"]["pid"], signal.SIGKILL)
        chosen = os.environ.get("CORRAL_TEST_RUNSC")
        node = Node(places, settings=NodeSettings(runsc=Path(chosen) if chosen else None, pool=1))

        async def ended(_: Ended) -> None: ...

        assert await node.open(ended, known=[kept]) == [kept]
        assert set(leaks.of_sandboxes(places)) == {kept}, f"{alive} and {dead} ought to be gone"
        await node.remove(kept)
        await node.shutdown()
        await nothing_left(places)


async def test_one_that_stands_still_and_cannot_be_roused_is_ended_and_harms_no_other(shared: Places) -> None:
    with home_directory(shared) as places:
        lost, alive = killed_server(places, 2)
        found = next(one for one in record.read_all(places.boxes) if one.spec.id == lost)
        record.stand_still(places.boxes, lost)
        connection = await urpc.Connection.open(sentry.control_socket(runsc_root(places), found.member)[1], timeout=10)
        await urpc.Sentry(connection, found.member).pause()
        connection.close()
        for file in runsc.state_files(runsc_root(places), found.member):
            file.unlink(missing_ok=True)
        chosen = os.environ.get("CORRAL_TEST_RUNSC")
        node = Node(places, settings=NodeSettings(runsc=Path(chosen) if chosen else None, pool=1))
        told: list[Ended] = []

        async def ended(one: Ended) -> None:
            told.append(one)

        assert await node.open(ended) == [alive]
        assert [(one.id, one.reason) for one in told] == [(lost, Reason.ENGINE_ERROR)]
        await node.shutdown()
        await nothing_left(places)


@pytest.mark.parametrize("after", ["at once", "once it has ended"])
async def test_when_the_holder_is_lost_with_the_server_sandboxes_end_and_keep_their_disks(shared: Places, after: str) -> None:
    with home_directory(shared) as places:
        (lost,) = killed_server(places, 1)
        found = next(record.read_all(places.boxes))
        spec = found.spec
        sentry = os.pidfd_open(found.identity.pid)
        os.kill(holder_of(places), signal.SIGKILL)
        if after == "once it has ended":
            assert select.select([sentry], [], [], 30)[0], "the sentry outlives its holder"
        os.close(sentry)
        home = EngineHome(places)
        assert await home.open() == []
        ended = await home.next_end()
        assert (ended.id, ended.reason, ended.disk_kept) == (lost, Reason.ENGINE_ERROR, True)
        again = await home.claim(spec)
        assert await again.run("cat /number") == (0, "0\n")
        await home.shutdown()
        await nothing_left(places)


async def test_a_second_server_on_one_home_is_refused(shared: Places) -> None:
    async with engine_home(shared) as home:
        box = await home.claim()
        with pytest.raises(SetupError, match=f"process {os.getpid()}"):
            await EngineHome(home.places).open()
        assert await box.run("echo undisturbed") == (0, "undisturbed\n")


async def test_sandboxes_outlive_the_holder(shared: Places) -> None:
    async with engine_home(shared) as home:
        box = await home.claim()
        os.kill(holder_of(home.places), signal.SIGKILL)
        assert await box.run("echo alive") == (0, "alive\n")
        # More than wait in the pool: for the last a new holder must be there.
        fresh = [await home.claim() for _ in range(3)]
        assert await fresh[-1].run("echo new") == (0, "new\n")
        os.kill(box.box.pid, signal.SIGKILL)
        assert (await home.next_end()).id == box.id
        for one in (box, *fresh):
            one.leave()
        await home.close()
        adopted = [Inside(home, found) for found in await home.open()]
        assert {found.id for found in adopted} == {one.id for one in fresh}
        for found in adopted:
            await found.enter()
            assert await found.run("echo adopted") == (0, "adopted\n")
