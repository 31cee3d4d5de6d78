"""Files of a guest, through the real agent on the other end of a real link."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from corral.errors import AccessDenied, Conflict, CorralError, FileExists, FileNotFound, InvalidArgument, IsADirectory, NotADirectory, SandboxEnded
from corral.node.files import Files
from corral.node.guest import Guest
from corral.node.transfer import Download
from corral.schema.file import At, Chmod, Chown, Copy, Glob, Kind, ListFiles, Mkdir, Move, Remove, Symlink
from corral.schema.process import ProcessStart
from harness.agent import Agent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    (tmp_path / "w").mkdir()
    agent = Agent(tmp_path)
    yield agent
    agent.end()


@pytest.fixture
def w(agent: Agent) -> Path:
    """The guest's workdir, which is a directory of this machine."""
    return agent.directory / "w"


@asynccontextmanager
async def opened(agent: Agent, **options: Any) -> AsyncIterator[tuple[Guest, Files]]:
    async with agent.guest() as guest:
        yield guest, Files(guest.link, guest.processes.next_channel, workdir=str(agent.directory / "w"), **options)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


async def whole(download: Download) -> bytes:
    return b"".join([piece async for piece in download])


def left(w: Path) -> list[str]:
    return sorted(path.name for path in w.iterdir())


def same(one: bytes, other: bytes) -> bool:
    """Compared outside of assert: nobody wants to read the difference."""
    return one == other


# ── bytes ──


async def test_what_is_written_is_read(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        entry = await files.write("a/b/c.txt", pieces(b"hello ", b"", b"world"))
        assert (entry.name, entry.path, entry.type, entry.size, entry.mode) == ("c.txt", f"{w}/a/b/c.txt", Kind.FILE, 11, 0o644)
        assert (w / "a/b/c.txt").read_bytes() == b"hello world"
        found, download = await files.read("a/b/c.txt")
        assert found == entry
        assert await whole(download) == b"hello world"
        for offset, length, expected in ((6, None, b"world"), (0, 5, b"hello"), (9, 100, b"ld"), (11, None, b""), (500, 3, b""), (2, 0, b"")):
            assert await whole((await files.read(At(path="a/b/c.txt"), offset=offset, length=length))[1]) == expected
        await files.write("a/b/c.txt", pieces(b"!"), append=True)
        assert (w / "a/b/c.txt").read_bytes() == b"hello world!"
        await files.write("a/b/c.txt", pieces(), mode=0o600)
        assert (await files.stat("a/b/c.txt")).size == 0
        assert (w / "a/b/c.txt").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExists):
            await files.write("a/b/c.txt", pieces(b"x"), exclusive=True)
        assert left(w / "a/b") == ["c.txt"]


async def test_large_files_both_ways(agent: Agent, w: Path) -> None:
    data = os.urandom(1_000_003) * 20
    async with opened(agent) as (_, files):
        entry = await files.write("big", pieces(*(data[at : at + 777_777] for at in range(0, len(data), 777_777))))
        assert entry.size == len(data)
        assert same((w / "big").read_bytes(), data)
        assert same(await whole((await files.read("big"))[1]), data)
        assert same(await whole((await files.read("big", offset=12_345, length=9_999_999))[1]), data[12_345 : 12_345 + 9_999_999])


async def test_owner_mode_and_default_user(agent: Agent, w: Path) -> None:
    async with opened(agent, user="65534:65534") as (_, files):
        entry = await files.write("d/mine", pieces(b"x"), mode=0o640)
        assert (entry.uid, entry.gid, entry.mode) == (65534, 65534, 0o640)
        assert (w / "d").stat().st_uid == 65534
        assert (await files.write("theirs", pieces(b"x"), user="1:2")).uid == 1
        await files.mkdir(Mkdir(path="e/f", mode=0o700))
        assert ((w / "e/f").stat().st_uid, (w / "e/f").stat().st_mode & 0o777) == (65534, 0o700)
        with pytest.raises(InvalidArgument, match="no-such-user"):
            await files.write("nobody", pieces(b"x"), user="no-such-user")


async def test_a_body_cut_off_half_way_leaves_nothing(agent: Agent, w: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionError("the client went away")

    async with opened(agent) as (_, files):
        await files.write("kept", pieces(b"old"))
        with pytest.raises(ConnectionError):
            await files.write("kept", broken())
        hanging = asyncio.create_task(files.write("kept", endless()))
        await asyncio.sleep(0.05)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await files.exists("kept")
        async with asyncio.timeout(10):
            while left(w) != ["kept"]:
                await asyncio.sleep(0.01)
        assert (w / "kept").read_bytes() == b"old"


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(100_000)
        await asyncio.sleep(0)


async def test_readers_that_leave_early_hold_nothing(agent: Agent, w: Path) -> None:
    (w / "big").write_bytes(bytes(30_000_000))
    async with opened(agent) as (guest, files):
        for pieces_read in (0, 1, 5):
            _, download = await files.read("big")
            for _ in range(pieces_read):
                await anext(download)
            await download.aclose()
            with pytest.raises(StopAsyncIteration):
                await anext(download)
        assert not guest.link.busy
        # Nothing of it is left in the agent: the next server hears of no channel.
        await guest.ping()
    async with opened(agent) as (_, files):
        assert same(await whole((await files.read("big"))[1]), bytes(30_000_000))


async def test_a_slow_reader_stalls_itself_only(agent: Agent, w: Path) -> None:
    (w / "big").write_bytes(bytes(30_000_000))
    async with opened(agent) as (guest, files):
        _, slow = await files.read("big")
        await anext(slow)
        _, fast = await files.read("big")
        assert same(await whole(fast), bytes(30_000_000))
        started = await guest.processes.start(ProcessStart(argv=["echo", "alive"]))
        assert (await guest.processes.wait(started.id)).exit_code == 0
        assert len(await whole(slow)) > 29_000_000


async def test_many_transfers_at_once(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        data = [os.urandom(100_000 + n * 50_000) for n in range(30)]
        await asyncio.gather(*(files.write(f"f{n}", pieces(each)) for n, each in enumerate(data)))

        async def back(n: int) -> bytes:
            return await whole((await files.read(f"f{n}"))[1])

        assert await asyncio.gather(*(back(n) for n in range(30))) == data


# ── everything else ──


async def test_directories_links_and_entries(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        await files.mkdir(Mkdir(path="d/e"))
        await files.mkdir(Mkdir(path="d/e"))
        with pytest.raises(FileExists):
            await files.mkdir(Mkdir(path="d", parents=False))
        await files.write("d/file", pieces(b"12345"))
        await files.symlink(Symlink(target="file", path="d/link"))
        await files.symlink(Symlink(target="nowhere", path="d/dangling"))
        os.mkfifo(w / "d/fifo")
        listed = await files.list(ListFiles(path="d"))
        assert [(entry.name, entry.type) for entry in listed.entries] == [
            ("dangling", Kind.SYMLINK),
            ("e", Kind.DIRECTORY),
            ("fifo", Kind.FIFO),
            ("file", Kind.FILE),
            ("link", Kind.SYMLINK),
        ]
        assert not listed.more
        link = await files.stat("d/link")
        assert (link.type, link.target, link.path_b64) == (Kind.SYMLINK, "file", None)
        assert (await files.stat("d/link", follow=True)).size == 5
        assert [await files.exists(f"d/{name}") for name in ("file", "link", "dangling", "no", "file/x")] == [True, True, False, False, False]
        status = (w / "d/file").stat()
        entry = await files.stat("d/file")
        assert (entry.uid, entry.user, entry.modified_at.timestamp()) == (0, "root", pytest.approx(status.st_mtime, abs=1e-5))
        await files.chmod(Chmod(path="d", mode=0o750, recursive=True))
        assert (await files.stat("d/file")).mode == 0o750
        await files.chown(Chown(path="d", user="12:34", recursive=True))
        assert ((await files.stat("d/file")).uid, (await files.stat("d/link")).gid) == (12, 34)


async def test_long_listings_come_whole_and_in_pages(agent: Agent, w: Path) -> None:
    names = sorted(f"{n:05}-{'x' * 60}" for n in range(3000))
    for name in names:
        (w / name).touch()
    async with opened(agent) as (_, files):
        everything = await files.list(ListFiles(path="."))
        assert [entry.name for entry in everything.entries] == names
        assert not everything.more
        paged: list[str] = []
        after: str | None = None
        while True:
            page = await files.list(ListFiles(path=".", limit=700, after=after))
            paged += [entry.name for entry in page.entries]
            if not page.more:
                break
            after = page.entries[-1].path
        assert paged == names
        found = await files.glob(Glob(pattern="0*"))
        assert (len(found.paths), found.more) == (3000, False)
        found = await files.glob(Glob(pattern="**/*-x*", limit=10))
        assert (found.paths, found.more) == ([f"{w}/{name}" for name in names[:10]], True)


async def test_names_that_are_not_utf8(agent: Agent, w: Path) -> None:
    raw = os.fsencode(w) + b"/\xff\xfe"
    async with opened(agent) as (_, files):
        entry = await files.write(raw, pieces(b"odd"))
        assert (entry.name, entry.path) == ("\ufffd\ufffd", f"{w}/\ufffd\ufffd")
        assert entry.path_b64 == base64.b64encode(raw).decode()
        assert await whole((await files.read(At(path_b64=entry.path_b64)))[1]) == b"odd"
        assert (await files.list(ListFiles(path="."))).entries == [entry]
        await files.remove(Remove(path_b64=entry.path_b64))
        assert left(w) == []


async def test_moving_copying_and_removing(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        await files.write("tree/a/one", pieces(b"1"))
        await files.symlink(Symlink(target="one", path="tree/a/link"))
        await files.copy(Copy(source="tree", target="copy"))
        assert ((w / "copy/a/one").read_text(), (w / "copy/a/link").readlink()) == ("1", Path("one"))
        with pytest.raises(CorralError):
            await files.copy(Copy(source="tree/a/one", target="copy/a/one"))
        with pytest.raises(FileExists):
            await files.move(Move(source="tree/a/one", target="copy/a/one"))
        await files.write("tree/a/one", pieces(b"2"))
        await files.move(Move(source="tree/a/one", target="copy/a/one", overwrite=True))
        assert (w / "copy/a/one").read_text() == "2"
        with pytest.raises(Conflict, match="not empty"):
            await files.remove(Remove(path="copy"))
        await files.remove(Remove(path="copy", recursive=True))
        with pytest.raises(FileNotFound):
            await files.remove(Remove(path="copy"))
        await files.remove(Remove(path="copy", missing_ok=True))
        assert left(w) == ["tree"]


async def test_trees_as_tar_both_ways(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        await files.write("tree/a/one", pieces(b"1" * 100_000), mode=0o600)
        await files.symlink(Symlink(target="one", path="tree/a/link"))
        packed = await whole(await files.tar_out("tree"))
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            names = {member.name.removeprefix("./").rstrip("/") for member in archive}
            assert {"a", "a/one", "a/link"} <= names
        done = await files.tar_in("again/deep", pieces(*(packed[at : at + 10_000] for at in range(0, len(packed), 10_000))))
        assert done.files >= 2
        assert (w / "again/deep/a/one").read_bytes() == b"1" * 100_000
        assert (w / "again/deep/a/one").stat().st_mode & 0o777 == 0o600
        with pytest.raises(CorralError):
            await files.tar_in("bad", pieces(b"this is no tar archive" * 100))
        with pytest.raises(FileNotFound):
            await files.tar_out("tree/missing")


async def test_a_tar_stream_can_not_leave_its_directory(agent: Agent, w: Path) -> None:
    for name, link in (("../out", None), ("/tmp/corral-out", None), ("in/../../out", None), ("door/out", "..")):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as archive:
            if link is not None:
                member = tarfile.TarInfo("door")
                member.type, member.linkname = tarfile.SYMTYPE, link
                archive.addfile(member)
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
        async with opened(agent) as (_, files):
            with pytest.raises(CorralError):
                await files.tar_in("jail", pieces(stream.getvalue()))
        assert left(w) in (["jail"], [])
    assert not Path("/tmp/corral-out").exists()


# ── what can't be done ──


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("missing", FileNotFound, "missing` does not exist"),
        ("file/below", NotADirectory, "is not a directory"),
        ("dir", IsADirectory, "is a directory"),
        ("loop/x", InvalidArgument, "symbolic links"),
        ("n" * 300, InvalidArgument, "too long"),
        ("/" + "n/" * 2500, InvalidArgument, "more than the 4095"),
        ("a\0b", InvalidArgument, "NUL"),
        ("", InvalidArgument, "empty"),
        (At(), InvalidArgument, "either path or path_b64"),
        (At(path="a", path_b64="YQ=="), InvalidArgument, "either path or path_b64"),
        (At(path_b64="%%%"), InvalidArgument, "not base64"),
        ("fifo", InvalidArgument, "not a regular file|can't be used"),
        ("/dev/zero", InvalidArgument, "not a regular file|can't be used"),
    ],
)
async def test_what_can_not_be_read_says_why(agent: Agent, w: Path, path: At | str, error: type[CorralError], words: str) -> None:
    (w / "file").touch()
    (w / "dir").mkdir()
    (w / "loop").symlink_to("loop")
    os.mkfifo(w / "fifo")
    async with opened(agent) as (guest, files):
        with pytest.raises(error, match=words):
            await files.read(path)
        assert not guest.link.busy


async def test_what_can_not_be_written_says_why(agent: Agent, w: Path) -> None:
    (w / "file").touch()
    (w / "dir").mkdir()
    (w / "loop").symlink_to("loop")
    async with opened(agent) as (_, files):
        for path, error in (("dir", IsADirectory), ("file/x", NotADirectory), ("loop/x", InvalidArgument), ("n" * 300, InvalidArgument)):
            with pytest.raises(error):
                await files.write(path, pieces(b"x"))
        with pytest.raises((AccessDenied, FileNotFound, InvalidArgument)):
            await files.write("/proc/nothing/here", pieces(b"x"))
        with pytest.raises(FileNotFound):
            await files.write("no/parents", pieces(b"x"), parents=False)
        with pytest.raises(InvalidArgument, match="mode"):
            await files.write("x", pieces(b"x"), mode=0o77777)
        with pytest.raises(NotADirectory):
            await files.list(ListFiles(path="file"))
        with pytest.raises(InvalidArgument):
            await files.glob(Glob(pattern="[a"))
        assert left(w) == ["dir", "file", "loop"]


async def test_a_full_disk_is_told_at_once(agent: Agent, w: Path) -> None:
    with mounted_tmpfs(w / "small", "4m"):
        async with opened(agent) as (guest, files):
            with pytest.raises(CorralError, match="disk is full") as caught:
                await files.write("small/big", endless())
            assert caught.value.code == "disk_full"
            assert left(w / "small") == []
            assert not guest.link.busy


@contextmanager
def mounted_tmpfs(at: Path, size: str) -> Iterator[None]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


async def test_transfers_of_a_sandbox_that_ends_say_so(agent: Agent, w: Path) -> None:
    (w / "big").write_bytes(bytes(50_000_000))
    async with opened(agent) as (_, files):
        _, download = await files.read("big")
        await anext(download)
        writing = asyncio.create_task(files.write("x", endless()))
        await asyncio.sleep(0.05)
        agent.process.kill()
        with pytest.raises(SandboxEnded):
            await whole(download)
        with pytest.raises(SandboxEnded):
            await writing
        for use in (files.stat("big"), files.read("big"), files.write("x", pieces(b"x")), files.list(ListFiles(path="."))):
            with pytest.raises(SandboxEnded):
                await use


async def test_the_next_server_finds_abandoned_transfers_gone(agent: Agent, w: Path) -> None:
    (w / "big").write_bytes(bytes(20_000_000))
    async with opened(agent) as (guest, files):
        _, download = await files.read("big")
        await anext(download)
        writing = asyncio.create_task(files.write("new", endless()))
        await asyncio.sleep(0.05)
        assert len(left(w)) == 2
        guest.close()
        with pytest.raises(CorralError):
            await writing
    async with opened(agent) as (_, files):
        assert same(await whole((await files.read("big"))[1]), bytes(20_000_000))
        async with asyncio.timeout(10):
            while left(w) != ["big"]:
                await asyncio.sleep(0.01)


# ── watching ──


async def test_changes_are_seen_by_every_reader_and_again_after_an_interruption(agent: Agent, w: Path) -> None:
    (w / "sub").mkdir()
    async with opened(agent) as (_, files):
        async with files.watch(".", recursive=True) as one, files.watch(".", recursive=True) as two:
            (w / "sub/new").write_text("x")
            (w / "sub/new").rename(w / "moved")
            (w / "moved").unlink()
            first = [await anext(one) for _ in range(4)]
            kinds = [(event.type, event.path, event.to, event.directory) for _, event in first]
            assert kinds == [
                ("create", f"{w}/sub/new", None, False),
                ("write", f"{w}/sub/new", None, False),
                ("rename", f"{w}/sub/new", f"{w}/moved", False),
                ("remove", f"{w}/moved", None, False),
            ]
            assert [await anext(two) for _ in range(4)] == first
        (w / "while-away").mkdir()
        async with files.watch(".", recursive=True, after=first[1][0]) as again:
            assert [await anext(again) for _ in range(2)] == first[2:]
            position, event = await anext(again)
            assert (event.type, event.path, event.directory) == ("create", f"{w}/while-away", True)
            assert position > first[-1][0]


async def test_an_interruption_that_lost_something_says_overflow(agent: Agent, w: Path) -> None:
    async with opened(agent) as (_, files):
        async with files.watch(".") as watching:
            (w / "a").touch()
            position, _ = await anext(watching)
    async with opened(agent) as (_, files):
        async with files.watch(".", after=position) as watching:
            new, event = await anext(watching)
            assert event.type == "overflow"
            assert new > position
            (w / "b").touch()
            assert (await anext(watching))[1].path == f"{w}/b"


async def test_a_watch_of_nothing_says_why(agent: Agent) -> None:
    async with opened(agent) as (guest, files):
        with pytest.raises(FileNotFound):
            async with files.watch("missing"):
                pass
        with pytest.raises(FileNotFound):
            await anext(files.watch("missing"))
        assert not guest.link.busy
        async with files.watch(".") as watching:
            agent.process.kill()
            with pytest.raises(SandboxEnded):
                await anext(watching)
