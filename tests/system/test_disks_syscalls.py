"""System calls against the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.node import mounts, syscalls
from corral.node.syscalls import MountFlag

pytestmark = pytest.mark.no_engine


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory that is a small mount of its own."""
    syscalls.mount("tmpfs", tmp_path, "tmpfs", flags=MountFlag.NOSUID | MountFlag.NODEV, data="size=1m,nr_inodes=64")
    yield tmp_path
    mounts.sweep(tmp_path)


def test_mount_options_hold(place: Path) -> None:
    with pytest.raises(OSError) as full:
        (place / "file").write_bytes(bytes(2 << 20))
    assert full.value.errno == errno.ENOSPC


def test_a_read_only_bind_shows_changes_and_takes_none(place: Path) -> None:
    source, target = place / "source", place / "target"
    source.mkdir()
    target.mkdir()
    syscalls.bind(source, target, read_only=True)
    (source / "file").write_text("seen")
    assert (target / "file").read_text() == "seen"
    with pytest.raises(OSError) as refused:
        (target / "file").write_text("changed")
    assert refused.value.errno == errno.EROFS


def test_a_file_can_be_bound_too(place: Path) -> None:
    (place / "source").write_text("content")
    (place / "target").touch()
    syscalls.bind(place / "source", place / "target", read_only=True)
    assert (place / "target").read_text() == "content"


def test_what_is_mounted_under_a_shared_mount_appears_in_other_namespaces(place: Path) -> None:
    syscalls.make_shared(place)
    (place / "inner").mkdir()
    script = f"echo ready; read -r line; cat {place}/inner/file"
    argv = ["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", script]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        syscalls.mount("tmpfs", place / "inner", "tmpfs")
        (place / "inner" / "file").write_text("seen")
        out, _ = other.communicate(b"go\n", timeout=30)
    assert out == b"seen"


def test_errors_carry_number_and_path(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        syscalls.umount(tmp_path)
    assert (error.value.errno, error.value.filename) == (errno.EINVAL, str(tmp_path))
    with pytest.raises(FileNotFoundError):
        syscalls.bind(tmp_path / "missing", tmp_path)


def test_a_frozen_file_system_waits_with_its_writers(tmp_path: Path) -> None:
    image, target = tmp_path / "image", tmp_path / "target"
    target.mkdir()
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
    fd = os.open(target, os.O_RDONLY)
    try:
        syscalls.freeze(fd)
        with subprocess.Popen(["touch", str(target / "file")]) as writer:
            assert not (target / "file").exists()
            assert writer.poll() is None
            syscalls.thaw(fd)
            assert writer.wait(timeout=30) == 0
        assert (target / "file").exists()
        syscalls.syncfs(fd)
    finally:
        os.close(fd)
        mounts.sweep(target)


def test_memory_of_another_process_can_be_advised_away() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        pidfd = os.pidfd_open(process.pid)
        try:
            ranges: list[tuple[int, int]] = []
            for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                place, rights, *_ = line.split()
                start, end = (int(address, 16) for address in place.split("-"))
                if rights == "rw-p":
                    ranges.append((start, end - start))
            assert syscalls.page_out(pidfd, ranges) == sum(length for _, length in ranges)
        finally:
            os.close(pidfd)
            process.kill()
