"""Snapshots on the engine alone: what is in them, what they leave alone, what is left of one that is not finished."""

from __future__ import annotations

import asyncio
import json
import lzma
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from corral.errors import CorralError, ImageNotFound, SetupError
from corral.ids import new_id
from corral.node import snapshots
from corral.node.memory import Memories
from corral.node.snapshots import Snapshots
from corral.places import Places
from harness.engine import EngineHome, Inside, engine_home

pytestmark = pytest.mark.anyio

SAMPLES = Path(__file__).parents[1] / "samples"


class Home:
    """An engine and its snapshots."""

    def __init__(self, engine: EngineHome) -> None:
        self.engine = engine
        self.snapshots = Snapshots(engine.places, engine.disks, Memories(engine.places))

    async def snapshot(self, box: Inside) -> str:
        spec = box.box.spec
        stored = await self.snapshots.make(new_id("sn"), spec.id, spec.image, disk=spec.disk, user=None, workdir=None)
        return stored.spec.id

    async def claim(self, snapshot: str, *, disk: int = 256) -> Inside:
        return await self.engine.claim(replace(self.engine.spec(), image=self.snapshots.get(snapshot).spec, disk=disk))

    async def remove(self, *boxes: Inside) -> None:
        await self.engine.remove(*boxes)


@pytest.fixture(scope="module")
async def home(shared: Places) -> AsyncIterator[Home]:
    async with engine_home(shared) as engine:
        home = Home(engine)
        await home.snapshots.open()
        yield home
        for stored in home.snapshots.list():
            await home.snapshots.remove(stored.spec.id)


async def test_a_snapshot_of_a_running_sandbox_is_an_image(home: Home) -> None:
    box = await home.engine.claim()
    await box.run("echo kept > /kept; mkdir -p /d/e; echo deep > /d/e/f; ln -s /kept /link; chmod 600 /kept")
    snapshot = await home.snapshot(box)
    await box.run("echo later > /later; echo changed > /kept")
    one, two = await home.claim(snapshot), await home.claim(snapshot)
    for child in (one, two):
        assert await child.run("cat /kept /d/e/f /link; stat -c %a /kept; ls /later") == (1, "kept\ndeep\nkept\n600\n")
    await one.run("echo mine > /kept; rm -r /d")
    assert await two.run("cat /kept /d/e/f") == (0, "kept\ndeep\n")
    assert await box.run("cat /kept /later") == (0, "changed\nlater\n")
    await home.remove(box, one, two)


async def test_what_was_removed_stays_removed_through_a_chain(home: Home) -> None:
    box = await home.engine.claim()
    await box.run("mkdir /d; touch /d/old /gone; rm /bin/yes; rm -r /etc; mkdir /etc; echo new > /etc/only")
    first = await home.snapshot(box)
    child = await home.claim(first)
    assert await child.run("ls /etc; ls /bin/yes") == (1, "only\n")
    await child.run("rm /gone; rm -r /d; mkdir /d; touch /d/new; echo 2 > /etc/second")
    second = await home.snapshot(child)
    grandchild = await home.claim(second)
    assert await grandchild.run("ls /d /etc; ls /gone") == (1, "/d:\nnew\n\n/etc:\nonly\nsecond\n")
    await home.remove(box, child, grandchild)


async def test_a_chain_can_be_of_any_length(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "DEEPEST", 4)
    box = await home.engine.claim()
    for number in range(12):
        await box.run(f"echo {number} > /file-{number}; rm -f /file-{number - 3}; mkdir -p /d; rm -r /d; mkdir /d; touch /d/{number}")
        snapshot = await home.snapshot(box)
        await home.remove(box)
        # Larger and smaller disks than those the seeds have.
        box = await home.claim(snapshot, disk=(256, 300, 200)[number % 3])
        assert len(box.box.spec.image.layers) <= 4
    assert await box.run("ls /d; cat /file-*") == (0, "11\n10\n11\n9\n")
    await home.remove(box)


async def test_a_seed_too_large_for_the_disk_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "DEEPEST", 1)
    box = await home.engine.claim()
    await box.run("dd if=/dev/urandom of=/big bs=1M count=100")
    snapshot = await home.snapshot(box)
    with pytest.raises(CorralError, match="too few"):
        await home.claim(snapshot, disk=64)
    await home.remove(box)


async def test_a_stopped_sandbox_can_be_kept_too(home: Home) -> None:
    box = await home.engine.claim()
    await box.run("echo kept > /kept")
    box.leave()
    await home.engine.engine.kill(box.id)
    snapshot = await home.snapshot(box)
    child = await home.claim(snapshot)
    assert await child.run("cat /kept") == (0, "kept\n")
    again = await home.engine.claim(box.box.spec)
    await home.remove(child, again)


async def test_a_sandbox_survives_the_removal_of_the_snapshot_it_runs_on(home: Home) -> None:
    box = await home.engine.claim()
    await box.run("echo kept > /kept")
    snapshot = await home.snapshot(box)
    child = await home.claim(snapshot)
    await home.snapshots.remove(snapshot)
    assert await child.run("cat /kept") == (0, "kept\n")
    with pytest.raises(ImageNotFound):
        home.snapshots.get(snapshot)
    await home.remove(box, child)


async def test_many_at_once_while_it_writes(home: Home) -> None:
    """Each line is synced before the next, so whatever a snapshot has is whole: lines 1 to n, and n at least what was told before."""
    box = await home.engine.claim()
    await box.run("echo 0 > /told")
    writer = await box.start('i=0; while :; do i=$((i+1)); echo "$i" >> /log; sync /log; echo "$i" > /told.new; mv /told.new /told; done')
    made: list[tuple[int, str]] = []
    for _ in range(5):
        told = int((await box.run("cat /told"))[1])
        made += [(told, snapshot) for snapshot in await asyncio.gather(*(home.snapshot(box) for _ in range(10)))]
    for told, snapshot in made[::7]:
        child = await home.claim(snapshot)
        lines = (await child.run("cat /log"))[1].split()
        assert [int(line) for line in lines] == list(range(1, len(lines) + 1))
        assert len(lines) >= told
        assert int((await child.run("cat /told"))[1]) <= len(lines)
        await home.remove(child)
    assert (await box.guest.processes.wait(writer.id, timeout=0)).running
    await home.remove(box)


async def test_half_made_ones_vanish_at_the_next_start(home: Home) -> None:
    box = await home.engine.claim()
    whole, lost = await home.snapshot(box), await home.snapshot(box)
    directory = home.engine.places.snapshots
    (directory / f"{lost}.json").unlink()
    (directory / ".new-sn-aaaaaaaaaaaaaaaa.img").write_bytes(b"half")
    again = Snapshots(home.engine.places, home.engine.disks, Memories(home.engine.places))
    await again.open()
    left = {path.name for path in directory.iterdir()}
    assert {f"{whole}.json", f"{whole}.img"} <= left
    assert not left & {f"{lost}.img", ".new-sn-aaaaaaaaaaaaaaaa.img"}
    assert [stored.spec.id for stored in again.list() if stored.spec.id in (whole, lost)] == [whole]
    await home.snapshots.remove(lost)
    await home.remove(box)


async def test_one_of_an_earlier_corral_is_an_image(home: Home) -> None:
    """The files are as Corral wrote them before snapshots could have memory, with the places of this home."""
    id, directory = "sn-samplesample2345", home.engine.places.snapshots
    (directory / f"{id}.img").write_bytes(lzma.decompress((SAMPLES / "snapshot-1.img.xz").read_bytes()))
    document = json.loads((SAMPLES / "snapshot-1.json").read_bytes())
    document["layers"] = [*map(str, home.engine.spec().image.layers), str(directory / f"{id}.img")]
    (directory / f"{id}.json").write_text(json.dumps(document))
    await home.snapshots.open()
    child = await home.claim(id)
    assert await child.run("cat /kept; stat -c %a /kept; ls /bin/yes") == (1, "of version 1\n640\n")
    await child.run("echo more >> /kept")
    grandchild = await home.claim(await home.snapshot(child))
    assert await grandchild.run("cat /kept") == (0, "of version 1\nmore\n")
    await home.remove(child, grandchild)
    document["version"] = 2
    (directory / f"{id}.json").write_text(json.dumps(document))
    with pytest.raises(SetupError, match="format 2"):
        await home.snapshots.open()
    document["version"] = 1
    (directory / f"{id}.json").write_text(json.dumps(document))
