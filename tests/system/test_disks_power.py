"""The machine loses its power: what had been answered is there, on a medium that has what was synced and no more."""

from __future__ import annotations

import os
import signal

import pytest

from corral import Client, Sandbox, Snapshot, Volume
from corral.places import Places
from harness import homes, leaks
from harness.medium import medium
from harness.server import Server


@pytest.mark.timeout(300)
def test_what_was_answered_is_there_after_a_power_cut(shared: Places) -> None:
    with medium() as disk:
        places = Places(disk.path)
        homes.furnish(places, shared, ["tiny"])
        server = Server(places.home)
        server.start()
        try:
            with Client(server.url, server.key) as client:
                # It has run for a while.
                os.sync()
                data = Volume.create("data", size=64, client=client)
                box = Sandbox.create("tiny", volumes={"/data": data}, timeout=None, client=client)
                asleep = Sandbox.create("tiny", timeout=None, client=client)
                box.run("echo synced > /data/file; sync; echo unsynced > /file").check()
                ticking = asleep.exec("sh", "-c", "read line; echo $line $(cat /tmp/memory)")
                asleep.run("echo memory > /tmp/memory; echo disk > /file").check()
                kept, point = box.snapshot("kept"), box.checkpoint("point")
                warm = asleep.snapshot("warm", memory=True)
                copy = data.clone("copy")
                asleep.pause()
                data.files.write("answered", "whole")
                # Nothing is written while it is looked at.
                assert server.process is not None
                server.process.send_signal(signal.SIGSTOP)
                disk.cut()
                server.process.send_signal(signal.SIGCONT)
        finally:
            server.down()
        disk.after_cut()
        server.start()
        try:
            with Client(server.url, server.key) as client:
                assert {one.id for one in Snapshot.list(client=client)} == {kept.id, warm.id}
                assert {one.id for one in Volume.list(client=client)} == {data.id, copy.id}
                asleep = Sandbox.get(asleep.id, client=client)
                assert asleep.state == "paused"
                process = asleep.process(ticking.id)
                process.stdin.write("on\n")
                assert process.stdout.read() == "on memory\n"
                assert asleep.run("cat /file").stdout == "disk\n"
                box = Sandbox.get(box.id, client=client)
                assert box.state == "stopped"
                box.start()
                assert box.run("cat /data/file /data/answered").stdout == "synced\nwhole"
                box.rewind(point.id)
                for image in (kept, box):
                    with Sandbox.create(image if isinstance(image, Snapshot) else image.snapshot(), client=client) as child:
                        assert child.run("cat /file").stdout == "unsynced\n"
                with Sandbox.create(warm, client=client) as child:
                    assert "restore" in child.timing
                    assert child.run("cat /tmp/memory /file").stdout == "memory\ndisk\n"
                with Sandbox.create("tiny", volumes={"/data": copy}, client=client) as child:
                    assert child.run("cat /data/file").stdout == "synced\n"
        finally:
            server.down()
        assert leaks.of_ended_home(places) == []
