"""Files in and out, with every kind of name and content."""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from corral.errors import CorralError, FileExists, FileNotFound, InvalidArgument, IsADirectory, NotADirectory
from harness.flavor import FLAVORS
from harness.server import Server


@pytest.fixture(params=FLAVORS)
def sdk(request: pytest.FixtureRequest, server: Server) -> Any:
    return FLAVORS[request.param]


@pytest.fixture
async def box(sdk: Any) -> AsyncIterator[Any]:
    async with await sdk.Sandbox.create("tiny", workdir="/tmp") as sb:
        yield sb


async def test_text_bytes_files_and_iterators_are_written(box: Any) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a"
        yield b"b" * 300_000
        yield b"c"

    await box.files.write("/tmp/deep/er/text", "héllo\n")
    assert await box.files.read_text("/tmp/deep/er/text") == "héllo\n"
    await box.files.write("bytes", b"\x00\xff")
    assert await box.files.read("/tmp/bytes") == b"\x00\xff"
    await box.files.write("pieces", pieces())
    assert await box.files.read("pieces") == b"a" + b"b" * 300_000 + b"c"
    await box.files.write("file", io.BytesIO(b"from a file"))
    await box.files.write("textfile", io.StringIO("tëxt"))
    assert (await box.files.read("file"), await box.files.read("textfile")) == (b"from a file", "tëxt".encode())
    await box.files.write("empty", b"")
    assert await box.files.read("empty") == b""


async def test_ways_of_writing(box: Any) -> None:
    entry = await box.files.write("f", "1", mode=0o600)
    assert (entry.path, entry.size, entry.mode, entry.type) == ("/tmp/f", 1, 0o600, "file")
    await box.files.write("f", "2", append=True)
    assert await box.files.read("f") == b"12"
    with pytest.raises(FileExists):
        await box.files.write("f", "3", exclusive=True)
    await box.files.write("f", "4")
    assert (await box.files.stat("f")).mode == 0o600
    with pytest.raises(FileNotFound):
        await box.files.write("no/such/f", "x", parents=False)


async def test_parts_are_read(box: Any) -> None:
    await box.files.write("f", "0123456789")
    assert await box.files.read("f", offset=3, length=4) == b"3456"
    assert await box.files.read("f", offset=8) == b"89"
    assert await box.files.read("f", length=0) == b""
    assert b"".join([piece async for piece in box.files.pieces("f", offset=5)]) == b"56789"


async def test_arranging(box: Any) -> None:
    await box.files.mkdir("d/e")
    await box.files.write("d/e/a.txt", "a")
    await box.files.copy("d/e/a.txt", "d/b.txt")
    await box.files.move("d/b.txt", "d/c.txt")
    await box.files.symlink("c.txt", "d/link")
    await box.files.chmod("d/c.txt", 0o640)
    await box.files.chown("d/c.txt", "1000:1000")
    entry = await box.files.stat("d/c.txt")
    assert (entry.mode, entry.uid, entry.gid) == (0o640, 1000, 1000)
    assert (await box.files.stat("d/link")).target == "c.txt"
    assert [one.name for one in await box.files.list("d")] == ["c.txt", "e", "link"]
    assert {one.path for one in await box.files.list("d", depth=2)} == {"/tmp/d/c.txt", "/tmp/d/e", "/tmp/d/e/a.txt", "/tmp/d/link"}
    assert await box.files.glob("/tmp/d/**/*.txt") == ["/tmp/d/c.txt", "/tmp/d/e/a.txt"]
    assert await box.files.exists("d/e")
    await box.files.remove("d", recursive=True)
    assert not await box.files.exists("d/e")
    await box.files.remove("d", missing_ok=True)


async def test_errors_are_those_of_the_file_system(box: Any) -> None:
    with pytest.raises(FileNotFoundError):
        await box.files.read("/no/such/file")
    with pytest.raises(IsADirectory):
        await box.files.read("/tmp")
    with pytest.raises(NotADirectory):
        await box.files.list("/etc/passwd")
    await box.files.mkdir("full/x")
    with pytest.raises(Exception, match="not empty"):
        await box.files.remove("full")
    with pytest.raises(CorralError):
        await box.files.write("/proc/version", "x")
    for path in ("", "a\0b", "x" * 5000):
        with pytest.raises((InvalidArgument, OSError)):
            await box.files.read(path)


async def test_names_that_are_not_utf8(box: Any) -> None:
    name = b"/tmp/caf\xe9"
    await box.files.write(name, "x")
    assert await box.files.read(name) == b"x"
    (entry,) = [one for one in await box.files.list("/tmp") if one.path_b64]
    assert await box.files.exists(os.fsdecode(name))
    assert entry.path == "/tmp/caf\ufffd"
    await box.files.remove(name)


async def test_a_directory_goes_in_and_comes_out_the_same(box: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "run").write_text("#!/bin/sh\necho ran\n")
    (source / "run").chmod(0o755)
    (source / "sub" / "big").write_bytes(os.urandom(3_000_000))
    (source / "link").symlink_to("sub/big")
    counted: list[int] = []
    await box.files.upload(source, "/tmp/in", on_bytes=counted.append)
    assert sum(counted) > 3_000_000
    assert (
        await box.run("/tmp/in/run; readlink /tmp/in/link; find /tmp/in -type d | sort")
    ).stdout == "ran\nsub/big\n/tmp/in\n/tmp/in/sub\n/tmp/in/sub/empty\n"
    await box.files.download("/tmp/in", tmp_path / "back")
    assert (tmp_path / "back" / "sub" / "big").read_bytes() == (source / "sub" / "big").read_bytes()
    assert os.readlink(tmp_path / "back" / "link") == "sub/big"
    assert (tmp_path / "back" / "run").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "back" / "sub" / "empty").is_dir()


async def test_a_file_goes_in_and_comes_out(box: Any, tmp_path: Path) -> None:
    source = tmp_path / "f"
    source.write_bytes(os.urandom(2_000_000))
    source.chmod(0o700)
    await box.files.upload(source, "/tmp/f")
    assert (await box.files.stat("/tmp/f")).mode == 0o700
    await box.files.download("/tmp/f", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == source.read_bytes()
    (tmp_path / "into").mkdir()
    await box.files.download("/tmp/f", tmp_path / "into")
    assert (tmp_path / "into" / "f").stat().st_size == 2_000_000
    with pytest.raises(FileNotFound):
        await box.files.download("/no/such", tmp_path / "h")
    assert not list(tmp_path.glob("*.part"))


async def test_changes_are_watched(box: Any) -> None:
    await box.files.mkdir("w")
    watch = box.files.watch("w", recursive=True)
    steps = aiter(watch)
    import asyncio

    first = asyncio.ensure_future(anext(steps))
    while not first.done():  # the first change that is made after the watch stands is seen
        await box.files.write(f"w/{len(await box.files.list('w'))}", "x")
    event = await first
    assert event.type in {"create", "write", "rename"}
    assert event.path.startswith("/tmp/w/")
    await steps.aclose()
