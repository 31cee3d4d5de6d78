"""Snapshots with memory: what ran when they were taken runs in each sandbox made from them, as somebody of its own."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest

from corral import Client, Image, Sandbox, Snapshot, Volume
from corral.errors import InvalidArgument, InvalidState, NotFound, QuotaExceeded, SetupError, Unsupported
from corral.node import record
from corral.node.memory import Memories
from corral.places import Places
from harness.server import Server
from harness.site import Site

SAMPLES = Path(__file__).parents[1] / "samples"


def test_sandboxes_of_a_snapshot_with_memory_go_on_from_it(server: Server) -> None:
    with Sandbox.create("base", memory=768, env={"FROM": "source"}) as box:
        site = Site(box)
        assert [site.ask() for _ in range(3)] == [1, 2, 3]
        echo = box.exec("sh", "-c", "echo begun; while read line; do echo $line $FROM; [ $line != end ] || exit 7; done", timeout=3600)
        assert next(iter(echo.stdout)) == "begun\n"
        box.files.write("/tmp/in-memory", "kept\n")
        snapshot = box.snapshot("warm-site", memory=True)
        assert snapshot.memory is not None
        assert snapshot.memory > 1 << 20
        # The source goes on as if nothing had been.
        assert site.ask() == 4
        echo.stdin.write("on\nend\n")
        assert echo.stdout.read() == "on source\nend source\n"
    kids = [Sandbox.create("warm-site", name=f"warm-{number}", env={"FROM": str(number)}, disk=1024) for number in range(3)]
    try:
        for number, kid in enumerate(kids):
            assert "restore" in kid.timing
            # What it has at least is what it was saved with.
            assert (kid.info.memory, kid.info.disk) == (768, 1024)
            copy = kid.process(echo.id)
            copy.stdin.write("here\nend\n")
            # What runs keeps its variables; what is started gets its own.
            assert copy.stdout.read() == "begun\nhere source\nend source\n"
            assert copy.wait(timeout=60) == 7
            assert kid.run("echo $FROM; hostname; cat /tmp/in-memory").stdout == f"{number}\nwarm-{number}\nkept\n"
            assert [Site(kid, running=True).ask() for _ in range(number + 1)] == list(range(4, 5 + number))
        assert len({kid.run("cat /proc/sys/kernel/random/boot_id").stdout for kid in kids}) == 3
        # Like any other afterwards: paused, forked, restarted with a server that was killed.
        kids[0].pause()
        server.kill()
        server.start()
        assert Site(kids[0], running=True).ask() == 5
        [grandchild] = kids[1].fork()
        kids.append(grandchild)
        assert Site(grandchild, running=True).ask() == 6
        kids.append(Sandbox.create(snapshot))
        assert Site(kids[-1], running=True).ask() == 4
        # Without its memory it is the disk.
        kids[2].stop()
        kids[2].start()
        assert (
            kids[2]
            .run(["python3", "-c", "import sqlite3; print(sqlite3.connect('/var/tmp/data.db').execute('select count(*) from hits').fetchone()[0])"])
            .stdout
            == "6\n"
        )
        second = kids[1].snapshot(memory=True)
        kids.append(Sandbox.create(second))
        assert Site(kids[-1], running=True).ask() == 6
    finally:
        for kid in kids:
            kid.delete()
    for one in (second, snapshot):
        one.delete()
    left = [path.name for path in Places(server.home).memory.iterdir()]
    assert not [name for name in left if second.id in name or snapshot.id in name]
    with pytest.raises(NotFound):
        Snapshot.get("warm-site")


def test_what_a_template_starts_runs_already_in_its_sandboxes(server: Server) -> None:
    memory, template = Places(server.home).memory, f"t-{uuid.uuid4().hex[:12]}"
    before = set(memory.glob("sn-*"))
    command = "head -c 16 /dev/urandom | sha256sum > /tmp/mark; touch /tmp/ready; exec sleep 1000"
    built = Image.named("tiny").run(f"echo {template} > /word").start(command, ready={"file": "/tmp/ready"}, warm=True).build(template=template)

    def marked(box: Sandbox) -> str:
        [started] = [process for process in box.processes() if process.tag == "start"]
        assert started.running
        return box.run("cat /tmp/mark").check().stdout

    def warm() -> Sandbox:
        while "restore" not in (box := Sandbox.create(template)).timing:  # until there is a memory
            box.delete()
        return box

    with Sandbox.create(template) as cold:
        assert "restore" not in cold.timing
        alone = marked(cold)
    boxes = [warm(), Sandbox.create(template, name=f"{template}-a", disk=512)]
    try:
        # They come out of one memory, and each is somebody of its own.
        marks = {marked(box) for box in boxes}
        assert len(marks) == 1
        assert alone not in marks
        assert [box.run("hostname").stdout for box in boxes] == [f"{boxes[0].id}\n", f"{template}-a\n"]
        with Client() as client:
            assert set(client.templates.get(template).sandboxes) == {box.id for box in boxes}
        # A program finds out its variables when it starts.
        with Sandbox.create(template, env={"FLAVOR": "sour"}) as other:
            assert "restore" not in other.timing
            assert marked(other) not in marks
        assert [one for one in Snapshot.list() if one.info.sandbox not in {box.id for box in boxes}] == []
        [kept] = set(memory.glob("sn-*")) - before
        # It outlives the server, and is made anew where it would not do any more.
        server.kill()
        server.start()
        with Sandbox.create(template) as again:
            assert marked(again) in marks
        saved = json.loads((kept / "memory.json").read_bytes())
        saved["needs"]["cpu"] = [*saved["needs"]["cpu"], "a-feature-of-another-processor"]
        (kept / "memory.json").write_text(json.dumps(saved))
        server.kill()
        server.start()
        boxes.append(warm())
        assert marked(boxes[-1]) not in marks
    finally:
        for box in boxes:
            box.delete()
    with Client() as client:
        client.templates.delete(template)
        client.images.delete(built.id)
    assert set(memory.glob("sn-*")) == before


def test_memories_are_made_one_at_a_time_and_none_for_who_has_no_room(server: Server) -> None:
    places, word = Places(server.home), f"t-{uuid.uuid4().hex[:12]}"
    before = set(places.memory.glob("sn-*"))
    with Client() as admin:
        admin.projects.create(word, max_sandboxes=1)
        with Client(key=admin.keys.create(word, project=word).value) as client:
            Image.named("tiny").run(f"echo {word} > /word").start("touch /tmp/ready; exec sleep 1000", ready={"file": "/tmp/ready"}, warm=True).build(
                template=word, client=client
            )
            with client.sandboxes.create("tiny"):
                for pids in range(64, 68):
                    with pytest.raises(QuotaExceeded):
                        client.sandboxes.create(word, pids=pids)
            known = set(record.ids(places.boxes))
            at_once, cold = 0, {70, 71}
            while cold:
                for pids in sorted(cold):
                    with client.sandboxes.create(word, pids=pids) as box:
                        at_once = max(at_once, len(set(record.ids(places.boxes)) - known - {box.id}))
                        if "restore" in box.timing:
                            cold.remove(pids)
            assert at_once <= 1
            # Those that were refused have none, and nobody makes one for them now.
            assert len(set(places.memory.glob("sn-*")) - before) == 2
            client.templates.delete(word)
        admin.projects.delete(word)


def test_a_memory_that_cannot_be_used_is_told_and_the_sandbox_starts_cold(server: Server) -> None:
    with Sandbox.create("tiny") as box:
        box.exec("sleep", "1000")
        box.run("echo kept > /kept")
        snapshot = box.snapshot(memory=True)
    document = Places(server.home).memory / snapshot.id / "memory.json"
    saved = json.loads(document.read_bytes())
    saved["needs"]["cpu"].append("a-feature-of-another-processor")
    document.write_text(json.dumps(saved))
    server.kill()
    server.start()
    with Sandbox.create(snapshot) as kid:
        assert "restore" not in kid.timing
        assert kid.run("cat /kept").stdout == "kept\n"
        assert [process for process in kid.processes() if process.running] == []
        told = next(iter(kid.events(kind="sandbox.started_cold")))
        assert "a-feature-of-another-processor" in told.data["why"]
    snapshot.delete()


def test_a_memory_of_an_earlier_corral_goes_on_where_it_can_and_is_told_of_where_it_cannot(server: Server) -> None:
    """The document is as Corral wrote the first ones, before it told of volumes; what the sentry wrote is of the runsc in use, which alone can read it."""
    with Sandbox.create("tiny") as box:
        ticking = box.exec("sh", "-c", "read line; echo $line")
        snapshot = box.snapshot(memory=True)
    document = Places(server.home).memory / snapshot.id / "memory.json"
    written, sample = json.loads(document.read_bytes()), json.loads((SAMPLES / "memory-1.json").read_bytes())
    fitting = sample["needs"]
    needed = written["needs"]

    def start_with(**needs: object) -> Sandbox:
        server.kill()
        document.write_text(json.dumps({**sample, "id": snapshot.id, "size": written["size"], "needs": {**fitting, **needs}}))
        server.start()
        return Sandbox.create(snapshot)

    with start_with(**needed) as kid:
        assert "restore" in kid.timing
        copy = kid.process(ticking.id)
        copy.stdin.write("on\n")
        assert copy.stdout.read() == "on\n"
    for needs, why in (
        ({**needed, "cpu": fitting["cpu"]}, "a-feature-of-another-processor"),
        ({**needed, "runsc": fitting["runsc"]}, fitting["runsc"]),
        ({**needed, "agent": fitting["agent"]}, "guest agent"),
    ):
        with start_with(**needs) as kid:
            assert "restore" not in kid.timing
            assert why in next(iter(kid.events(kind="sandbox.started_cold"))).data["why"]
            assert [process for process in kid.processes() if process.running] == []
    snapshot.delete()


def test_a_memory_of_a_later_corral_is_refused(tmp_path: Path) -> None:
    place = Places(tmp_path).memory / "sn-samplesample2345"
    place.mkdir(parents=True)
    (place / "memory.json").write_text(json.dumps({**json.loads((SAMPLES / "memory-1.json").read_bytes()), "version": 2}))
    with pytest.raises(SetupError, match="format 2"):
        Memories(Places(tmp_path)).open(None)
    assert (place / "memory.json").exists()


def test_what_has_no_memory_to_keep_is_refused(server: Server) -> None:
    volume = Volume.create("warm-volume", size=64)
    with Sandbox.create("tiny", sudo=False) as box:
        box.attach("/data", volume)
        with pytest.raises(Unsupported, match="volumes"):
            box.snapshot(memory=True)
        box.detach("/data")
        box.pause()
        # A paused one is resumed for it.
        snapshot = box.snapshot(memory=True)
        with pytest.raises(InvalidArgument, match="sudo"):
            Sandbox.create(snapshot)
        with Sandbox.create(snapshot, sudo=False, volumes={"/data": volume}) as kid:
            assert "restore" in kid.timing
            assert kid.run("echo there > /data/file && cat /data/file").stdout == "there\n"
        snapshot.delete()
        box.stop()
        with pytest.raises(InvalidState, match="stopped"):
            box.snapshot(memory=True)
    volume.delete()
