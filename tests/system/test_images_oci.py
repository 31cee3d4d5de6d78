"""Images of others: imported from archives, exported as archives; compared, file by file, with what umoci makes of the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from corral.errors import InvalidArgument
from corral.images.oci import job
from corral.images.oci.documents import Platform
from corral.images.oci.importer import DEEPEST
from harness import oci
from harness.oci import Layout

HERE = Platform.parse(None)
pytestmark = [pytest.mark.no_engine, pytest.mark.skipif(bool(oci.MISSING), reason=f"{oci.MISSING} are not installed")]


async def imported(archive: Path, layers: Path, *, rootfs: bool = False) -> tuple[list[Path], job.Imported]:
    layers.mkdir(exist_ok=True)
    wanted = job.UnpackRootfs(str(layers), ".import-x", str(archive)) if rootfs else job.Unpack(str(layers), ".import-x", str(archive), HERE)
    answer = await job.run(wanted, print)
    return [layers / name for name in answer["layers"]], answer


def first(root: Path) -> None:
    for directory in ("usr/bin", "etc/deep/er", "var/old", "var/gone", "tmp"):
        (root / directory).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    program = root / "usr/bin/program"
    program.write_bytes(os.urandom(300_000))
    os.chown(program, 7, 8)
    program.chmod(0o4755)
    (root / "usr/bin/hard").hardlink_to(program)
    (root / "usr/bin/sh").symlink_to("program")
    os.setxattr(program, "user.note", b"a\0\xff")
    capable = root / "usr/bin/capable"
    capable.write_bytes(b"x")
    os.setxattr(capable, "security.capability", bytes.fromhex("0100000200200000000000000000000000000000"))
    for name in ("etc/deep/er/file", "var/old/x", "var/old/y", "var/gone/z", "etc/näme with\nline", "etc/empty"):
        (root / name).write_text("" if name == "etc/empty" else name)
    os.chown(root / "var/old/x", 1000, 2_000_000)
    (root / "tmp").chmod(0o1777)
    os.mkfifo(root / "tmp/pipe")
    os.utime(root / "etc/deep/er/file", ns=(981173106_789000000, 981173106_789000000))
    os.lchown(root / "bin", 5, 6)


def second(root: Path) -> None:
    (root / "var/old/x").unlink()
    oci.program("rm", "-r", root / "etc/deep")
    (root / "etc/deep").mkdir()
    (root / "etc/deep/new").write_text("new")
    (root / "usr/bin/hard2").hardlink_to(root / "usr/bin/program")
    (root / "var").chmod(0o700)
    (root / "bin/via").write_text("via")


def third(root: Path) -> None:
    oci.program("rm", "-r", root / "var/old", root / "var/gone")
    (root / "var/old").write_text("a file now")
    (root / "usr/bin/hard").unlink()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    for change in (first, second, third):
        made.layer(change)
    made.configure("--config.user=1000:2000", "--config.env=A=b", "--config.cmd=/bin/sh", "--config.workingdir=/etc")
    return made


async def test_archives_are_unpacked_as_umoci_does(layout: Layout, tmp_path: Path) -> None:
    wanted = oci.manifest(layout.unpacked(tmp_path / "umoci"))
    for number, docker in enumerate((False, True)):
        layers, answer = await imported(layout.archive(tmp_path / f"archive-{number}", docker=docker), tmp_path / "layers")
        assert len(layers) == 3
        assert oci.seen(layers, tmp_path / f"view-{number}") == wanted
    assert answer["config"]["User"] == "1000:2000"
    assert sorted(path.name for path in (tmp_path / "layers").iterdir()) == sorted(path.name for path in layers)


async def test_layers_of_zstd_are_unpacked_as_others(layout: Layout, tmp_path: Path) -> None:
    wanted = oci.manifest(layout.unpacked(tmp_path / "umoci"))
    archive = tmp_path / "zstd.tar"
    oci.program("skopeo", "copy", "--dest-compress-format=zstd", "--dest-compress", f"oci:{layout.image}", f"oci:{tmp_path / 'zstd'}:v1")
    assert oci.media_types(tmp_path / "zstd") == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    oci.program("tar", "-C", tmp_path / "zstd", "-cf", archive, ".")
    layers, _ = await imported(archive, tmp_path / "layers")
    assert oci.seen(layers, tmp_path / "view") == wanted
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(archive.read_bytes().replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfc"))
    with pytest.raises(InvalidArgument, match="is no tar file"):
        await imported(damaged, tmp_path / "others")


async def test_many_layers_become_few(layout: Layout, tmp_path: Path) -> None:
    for number in range(DEEPEST):
        layout.layer(lambda root, number=number: _rename(root, number))
    wanted = oci.manifest(layout.unpacked(tmp_path / "umoci"))
    layers, _ = await imported(layout.archive(tmp_path / "archive"), tmp_path / "layers")
    assert len(layers) == DEEPEST
    assert oci.seen(layers, tmp_path / "view") == wanted


def _rename(root: Path, number: int) -> None:
    (root / f"file-{number}").write_text(str(number))
    (root / f"file-{number - 1}").unlink(missing_ok=True)
