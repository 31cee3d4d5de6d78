"""Trees go out and come back the same; a hostile one stays in its directory."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.errors import Conflict
from corral.sdk import tree


def puller(data: bytes, step: int = 1000) -> Callable[[], bytes]:
    pieces = iter([data[start : start + step] for start in range(0, len(data), step)])
    return lambda: next(pieces, b"")


def shape(root: Path) -> dict[str, tuple[int, bytes | str | None]]:
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found


def test_a_tree_comes_back_as_it_went(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "empty").mkdir(mode=0o700)
    (source / "a.txt").write_text("hello")
    (source / "big").write_bytes(os.urandom(700_001))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    (source / "deep" / "er" / ("long" * 40)).write_text("a long name")
    (source / "deep" / "ünï").write_text("a name beyond ASCII")
    (source / "link").symlink_to("/usr/bin/python3")
    (source / "deep" / "up").symlink_to("../a.txt")
    target = tmp_path / "target"
    assert tree.unpack(puller(b"".join(tree.pack(source))), target) == len(shape(source))
    assert shape(target) == shape(source)
    assert (target / "a.txt").stat().st_mtime == pytest.approx((source / "a.txt").stat().st_mtime, abs=1e-3)


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd = os.fsdecode(b"caf\xe9")
    (source / odd).write_text("x")
    tree.unpack(puller(b"".join(tree.pack(source))), tmp_path / "target")
    assert os.listdir(tmp_path / "target") == [odd]


def test_it_overwrites_what_is_there(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    (source / "a").write_text("new")
    (target / "a").symlink_to(tmp_path / "outside")
    tree.unpack(puller(b"".join(tree.pack(source))), target)
    assert (target / "a").read_text() == "new"
    assert not (tmp_path / "outside").exists()


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as file:
        for info, data in members:
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.mark.parametrize(
    "members",
    [
        [(member("../evil"), b"x")],
        [(member("/evil"), b"x")],
        [(member("a/../../evil"), b"x")],
        [(member("link", tarfile.SYMTYPE, ".."), b""), (member("link/evil"), b"x")],
        [(member("hard", tarfile.LNKTYPE, "../secret"), b"")],
        [(member("link", tarfile.SYMTYPE, "../secret"), b""), (member("hard", tarfile.LNKTYPE, "link/x"), b"")],
    ],
    ids=["up", "absolute", "inner up", "through a link", "hard link out", "hard link through a link"],
)
def test_nothing_is_written_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(Conflict, match="outside"):
        tree.unpack(puller(archive(*members)), tmp_path / "target")
    assert not (tmp_path / "evil").exists()


def test_set_uid_bits_and_devices_are_left_out(tmp_path: Path) -> None:
    data = archive((member("su", mode=0o4755), b"x"), (member("null", tarfile.CHRTYPE), b""), (member("fifo", tarfile.FIFOTYPE), b""))
    tree.unpack(puller(data), tmp_path)
    assert (tmp_path / "su").stat().st_mode & 0o7777 == 0o755
    assert sorted(os.listdir(tmp_path)) == ["su"]
