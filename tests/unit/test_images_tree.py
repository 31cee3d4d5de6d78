"""Files that a copy takes: archives of strangers, and what they may cost the host."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from corral.errors import CorralError, InvalidArgument, TooLarge
from corral.images import tree
from corral.images.bounded import Bounded
from corral.images.keys import step_key
from corral.images.tree import Placed, Tree
from corral.schema.image import Bind, Run

MOST = 4 << 20


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as made:
        for info, content in members:
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def sparse(size: int) -> bytes:
    """A file of so many bytes in the old form of GNU, of which none is in the archive."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:398] = size.to_bytes(12)  # the first piece: where it is, and that it has nothing
    block[386] = 0x80
    block[398:410] = b"00000000000\0"
    block[483:495] = size.to_bytes(12)
    block[483] = 0x80
    block[148:156] = b"        "
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + bytes(1024)


def long_header(size: int) -> bytes:
    """A header in which a name of so many bytes is said to follow, and does."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(size + -size % 512) + archive(member("a", b"a"))


def added(content: bytes, room: Path) -> bytes:
    """What ADD makes of an archive called `given`: the tar file that the sandbox is handed."""
    (room / "context.tar").write_bytes(archive(member("given", content)))
    context = Tree.read(room / "context.tar")
    with Bounded(room / "out.tar", MOST) as out:
        tree.write(context.place(["given"], name=None), out, owners=False, unpack=True)
    return (room / "out.tar").read_bytes()


def names(content: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(content)) as found:
        return found.getnames()


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gzip", "bzip2", "xz"])
def test_an_archive_is_unpacked_whatever_its_compression(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    inner = archive(
        member("a/b", b"content"), member("a/c", type=tarfile.LNKTYPE, linkname="a/b"), member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
    )
    assert names(added(compress(inner), tmp_path)) == ["a/b", "a/c"], "devices are left out"
    assert names(added(compress(b"no archive"), tmp_path)) == ["given"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress], ids=["plain", "gzip", "xz"])
@pytest.mark.parametrize(
    ("inner", "error"),
    [
        (archive(member("zeros", bytes(MOST))), TooLarge),
        (sparse(1 << 50), TooLarge),
        (long_header(3 << 20), CorralError),
        (archive(member("../out", b"x")), InvalidArgument),
        (archive(member("a/../../out", b"x")), InvalidArgument),
        (archive(member("a", type=tarfile.LNKTYPE, linkname="../../etc/passwd")), InvalidArgument),
    ],
    ids=["many zeros", "a sparse file", "a long header", "a name that leaves it", "one by the way", "a hard link out of it"],
)
def test_a_hostile_archive_costs_the_host_nothing(compress: Callable[[bytes], bytes], inner: bytes, error: type[Exception], tmp_path: Path) -> None:
    if error is CorralError:
        # Not an archive as far as anybody can tell: a file like any other.
        assert names(added(compress(inner), tmp_path)) == ["given"]
    else:
        with pytest.raises(error):
            added(compress(inner), tmp_path)
    assert (tmp_path / "out.tar").stat().st_size <= MOST


def test_an_archive_that_is_damaged_in_the_middle_is_said_to_be(tmp_path: Path) -> None:
    whole = archive(member("a", random.Random(1).randbytes(100_000)), member("b", b"b"))
    for damaged in (gzip.compress(whole)[:-2000] + bytes(1000), lzma.compress(whole)[:-20_000], whole[:60_000]):
        with pytest.raises(InvalidArgument, match=r"is damaged|ends in the middle"):
            added(damaged, tmp_path)


def test_links_are_no_multiplication(tmp_path: Path) -> None:
    """A hard link in a context becomes the file it stands for, each time."""
    (tmp_path / "context.tar").write_bytes(
        archive(member("one", bytes(1 << 20)), *(member(f"link{n}", type=tarfile.LNKTYPE, linkname="one") for n in range(1000)))
    )
    context = Tree.read(tmp_path / "context.tar")
    with pytest.raises(TooLarge, match="more than the 4 MiB"), Bounded(tmp_path / "out.tar", MOST) as out:
        tree.write(context.place(["."], name=None), out, owners=False)
    assert (tmp_path / "out.tar").stat().st_size <= MOST


def test_symbolic_links_of_a_context_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "context.tar").write_bytes(
        archive(
            member("out", type=tarfile.SYMTYPE, linkname="../../../etc"),
            member("absolute", type=tarfile.SYMTYPE, linkname="/etc"),
            member("circle", type=tarfile.SYMTYPE, linkname="circle"),
            member("etc/passwd", b"of the context"),
        )
    )
    context = Tree.read(tmp_path / "context.tar")
    for source in ("out/passwd", "absolute/passwd", "../../etc/passwd", "etc/../../etc/passwd"):
        (placed,) = context.place([source], name="x")
        assert (placed.entry.path, placed.entry.size) == ("etc/passwd", len(b"of the context"))
    with pytest.raises(CorralError):
        context.place(["circle/passwd"], name="x")
    assert [one.entry.kind for one in context.place(["circle"], name="x")] == ["symlink"]


@pytest.mark.parametrize(
    "content",
    [
        long_header(3 << 20),
        sparse(1 << 40),
        archive(member("a", b"x"), member("a/b", b"below a file")),
        archive(member("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)),
        archive(member("a", type=tarfile.LNKTYPE, linkname="later"), member("later", b"x")),
        archive(member("..", type=tarfile.DIRTYPE)),
        b"PK\3\4" + bytes(1000),
    ],
    ids=["a long header", "a sparse file", "below a file", "a device", "a link before its file", "the directory above", "no tar file"],
)
def test_a_context_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "context.tar").write_bytes(content)
    with pytest.raises(InvalidArgument):
        Tree.read(tmp_path / "context.tar")


def test_times_do_not_count_and_modes_do(tmp_path: Path) -> None:
    def of(**fields: object) -> str:
        (tmp_path / "context.tar").write_bytes(archive(member("a", b"x", **fields)))
        placed: list[Placed] = Tree.read(tmp_path / "context.tar").place(["a"], name=None)
        return tree.digest(placed, owners=False)

    assert of(mtime=1) == of(mtime=2)
    assert of(mode=0o644) != of(mode=0o755)


def test_a_key_tells_which_files_of_a_stage_are_bound() -> None:
    """What is bound from a stage is not read before the step is done, so its name counts."""

    def key(source: str) -> str:
        return step_key("parent", Run(command="cat /m", binds=[Bind(target="/m", source=source)]), "the stage")

    assert key("/a") != key("/b")
