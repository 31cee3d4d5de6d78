"""Big files past the guest: what the guest sees of them, what the host opens, and what an end in the middle leaves."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral import Sandbox
from corral.errors import CorralError, DiskFull
from corral.node.direct import open_to_read, open_to_write
from corral.places import Places
from harness import leaks
from harness.server import Server

MIB = 1 << 20
BIG = 9 * MIB + 12_345


@pytest.fixture
def box(server: Server) -> Iterator[Sandbox]:
    with Sandbox.create("base") as sandbox:
        yield sandbox


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def inside(box: Sandbox, path: str) -> str:
    return box.run(["sha256sum", path]).check().stdout.split()[0]


def test_both_sides_see_the_same_whatever_either_wrote(box: Sandbox) -> None:
    data = os.urandom(BIG)
    entry = box.files.write("/srv/deep/file", data, mode=0o604, user="www-data")
    assert (entry.size, entry.mode, entry.user) == (BIG, 0o604, "www-data")
    assert box.run(["sh", "-c", "stat -c '%s %a %U' file; ls -A"], cwd="/srv/deep").stdout == f"{BIG} 604 www-data\nfile\n"
    assert inside(box, "/srv/deep/file") == digest(data)
    assert digest(box.files.read("/srv/deep/file")) == digest(data)
    change = """
import mmap
with open("/srv/deep/file", "r+b") as file:
    file.seek(0, 2); file.write(b"the end")
    file.flush()
    with mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5_000_000:5_000_004] = b"here"
"""
    box.run(["python3", "-c", change], user="root").check()
    changed = data[:5_000_000] + b"here" + data[5_000_004:] + b"the end"
    assert digest(box.files.read("/srv/deep/file")) == digest(changed)
    assert box.files.read("/srv/deep/file", offset=BIG - 2 * MIB, length=2 * MIB + 3) == changed[BIG - 2 * MIB : BIG + 3]
    # A file that a program has open and mapped is replaced, not changed under it.
    holder = box.exec("python3", "-c", "import sys; f = open('/srv/deep/file','rb'); print('open', flush=True); sys.stdin.read(); print(len(f.read()))")
    lines = iter(holder.stdout)
    assert next(lines) == "open\n"
    box.files.write("/srv/deep/file", data[: 3 * MIB])
    holder.stdin.close()
    assert list(lines) == [f"{len(changed)}\n"]
    assert inside(box, "/srv/deep/file") == digest(data[: 3 * MIB])


def test_files_that_are_not_on_the_disk_are_those_the_guest_has_there(server: Server) -> None:
    """A file system of memory, and a directory that shows another: the host has something else at the same path, or nothing."""
    with Sandbox.create("tiny") as box:
        _elsewhere(box)


def _elsewhere(box: Sandbox) -> None:
    one, other = os.urandom(BIG), os.urandom(BIG)
    box.files.write("/srv/a/file", one)
    box.files.write("/srv/b/file", other)
    box.run(["mount", "-o", "bind", "/srv/b", "/srv/a"], user="root").check()
    assert digest(box.files.read("/srv/a/file")) == digest(other)
    box.files.write("/srv/a/file", one)
    assert inside(box, "/srv/b/file") == digest(one)
    box.files.write("/tmp/file", other)
    assert digest(box.files.read("/tmp/file")) == inside(box, "/tmp/file") == digest(other)


def test_links_are_followed_by_the_guest_alone(box: Sandbox) -> None:
    secret = Path("/etc/hostname")
    box.run(["sh", "-c", f"mkdir /srv/real && ln -s /srv/real /srv/link && ln -s {secret} /srv/host"], user="root").check()
    data = os.urandom(BIG)
    box.files.write("/srv/link/file", data)
    assert inside(box, "/srv/real/file") == digest(data)
    assert digest(box.files.read("/srv/link/file")) == digest(data)
    before = secret.read_bytes()
    box.files.write("/srv/host", data)
    assert secret.read_bytes() == before
    assert inside(box, "/etc/hostname") == digest(data)


def test_a_disk_that_is_full_says_so_and_nothing_is_left(server: Server) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(120):
            yield bytes(MIB)

    with Sandbox.create("tiny", disk=64) as box:
        with pytest.raises(DiskFull):
            box.files.write("/srv/file", body())
        assert box.run(["ls", "-A", "/srv"]).stdout == ""
        assert box.files.write("/srv/file", bytes(8 * MIB)).size == 8 * MIB


@pytest.mark.parametrize("how", ["stop", "pause", "delete"])
def test_an_end_in_the_middle_ends_the_transfer_and_frees_the_disk(server: Server, how: str) -> None:
    under_way, ended = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        for _ in range(8):
            yield os.urandom(MIB)
        under_way.set()
        ended.wait(60)
        for _ in range(8):
            yield bytes(MIB)

    with Sandbox.create("base") as box:
        box.files.write("/srv/before", b"kept")
        box.files.write("/srv/big", os.urandom(BIG))
        seen: list[CorralError] = []

        def upload() -> None:
            try:
                box.files.write("/srv/file", body())
            except CorralError as error:
                seen.append(error)

        uploading = threading.Thread(target=upload)
        uploading.start()
        pieces = box.files.pieces("/srv/big")
        next(pieces)
        assert under_way.wait(60)
        getattr(box, how)()
        ended.set()
        uploading.join(60)
        assert len(seen) == 1
        pieces.close()
        if how == "delete":
            return
        box.start() if how == "stop" else box.resume()
        assert box.files.read("/srv/before") == b"kept"
        assert sorted(entry.name for entry in box.files.list("/srv") if not entry.name.startswith(".corral-")) == ["before", "big"]
        box.stop()
        # Nothing of the host holds the disk of a stopped one.
        assert [trace for trace in leaks.of_sandboxes(Places(server.home)).get(box.id, []) if not trace.startswith("file ")] == []


# ── what the host opens ──


def test_only_regular_files_below_the_root_are_opened(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "d").mkdir(parents=True)
    outside.write_bytes(b"x" * 10)
    (root / "d/file").write_bytes(b"x" * 10)
    (root / "link").symlink_to(outside)
    (root / "way").symlink_to(root / "d")
    (root / "up").symlink_to("..")
    os.mkfifo(root / "pipe")
    for path in (b"/link", b"/way/file", b"/up/outside", b"/../outside", b"/d/../../outside", b"/pipe", b"/d", b"/", b"", b"/none", b"/d/file/x"):
        assert open_to_read(root, path) is None, path
        assert open_to_write(root, path, size=10) is None, path
    assert open_to_write(root, b"/d/file", size=11) is None
    for file in (open_to_read(root, b"/d/file"), open_to_write(root, b"/d/file", size=10)):
        assert file is not None
        os.close(file)
    assert open_to_read(tmp_path / "gone", b"/d/file") is None
