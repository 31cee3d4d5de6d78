"""Files of a volume from the host's side, in a directory that stands for it."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from corral.errors import FileNotFound, IsADirectory
from corral.node.volume_door import VolumeDoor
from corral.node.volume_files import Owner, VolumeFiles
from corral.schema.file import At, ListFiles
from corral.schema.volume import VolumeMkdir


@pytest.fixture
def files(tmp_path: Path) -> Iterator[VolumeFiles]:
    with VolumeFiles(tmp_path) as files:
        yield files


def door_of(root: Path) -> VolumeDoor:
    @asynccontextmanager
    async def opened() -> AsyncGenerator[VolumeFiles]:
        with VolumeFiles(root) as files:
            yield files

    return VolumeDoor(opened)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_whose_place_a_directory_took_meanwhile_is_given_up_whole(files: VolumeFiles, tmp_path: Path) -> None:
    before = descriptors()
    new = files.new("place", parents=False, overwrite=True)
    new.write(b"half")
    (tmp_path / "place").mkdir()
    with pytest.raises(IsADirectoryError):
        new.keep(Owner())
    assert descriptors() == before
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_a_file_is_not_there_before_it_is_whole(files: VolumeFiles, tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        new = files.new("file", parents=False, overwrite=True)
        new.write(content)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        new.keep(Owner(mode=0o640))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": content}
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640


def test_a_file_that_came_meanwhile_stays_unless_it_may_be_replaced(files: VolumeFiles, tmp_path: Path) -> None:
    new = files.new("file", parents=False, overwrite=False)
    (tmp_path / "file").write_bytes(b"another's")
    with pytest.raises(FileExistsError):
        new.keep(Owner())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"another's"]


def test_a_tree_of_any_depth_can_be_removed(files: VolumeFiles, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("stays")
    (tmp_path / "deep").mkdir()
    above = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=above)
        os.symlink("/etc/passwd", "link", dir_fd=above)
        inner = os.open("d", os.O_RDONLY, dir_fd=above)
        os.close(above)
        above = inner
    os.close(above)
    files.remove("deep")
    assert [path.name for path in tmp_path.iterdir()] == ["outside"]
    assert Path("/etc/passwd").exists()


async def test_a_reader_who_leaves_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    before = descriptors()
    door = door_of(tmp_path)
    entry, reading = await door.read(At(path="file", path_b64=None))
    assert entry.size == 1_000_000
    assert len(await anext(reading)) < 1_000_000
    await reading.aclose()

    async def broken() -> AsyncGenerator[bytes]:
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await door.write(At(path="new", path_b64=None), broken())
    with pytest.raises(FileNotFound):
        await door.read(At(path="nothing", path_b64=None))
    assert descriptors() == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


async def test_the_root_is_there_already_and_below_a_file_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    door = door_of(tmp_path)
    await door.mkdir(VolumeMkdir.model_validate({"path": "/"}))
    with pytest.raises(IsADirectory):
        await door.mkdir(VolumeMkdir.model_validate({"path": "/", "parents": False}))
    assert not await door.exists(At(path="/file/below", path_b64=None))


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_page_by_page_each_name_comes_once(tmp_path: Path, limit: int) -> None:
    root = os.fsencode(tmp_path)
    names = [b"a", b"d", b"d/a", b"d/a/\xfe", b"d/a/\xff", b"d/b", b"d.x", b"link", b"\xee\xa3\xbf", b"\xef\xbf\xbd", b"\xfe", b"\xff", b"\xff/in"]
    for name in names:
        if name == b"link":
            os.symlink("d", os.path.join(root, name))
        elif name in (b"d", b"d/a", b"\xff"):
            os.mkdir(os.path.join(root, name))
        else:
            Path(os.fsdecode(os.path.join(root, name))).touch()
    door, seen, cursor = door_of(tmp_path), list[bytes](), dict[str, str]()
    while len(seen) <= len(names):
        page = await door.list(ListFiles.model_validate({"path": "/", "depth": 4, "limit": limit, **cursor}))
        assert len(page.entries) <= limit
        seen += [entry.path.encode() if entry.path_b64 is None else base64.b64decode(entry.path_b64) for entry in page.entries]
        if not page.more:
            break
        cursor = page.cursor
    assert seen == [b"/" + name for name in sorted(names, key=lambda name: name.split(b"/"))]
