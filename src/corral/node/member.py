"""The places of one pool member on the host: its tiny root, its volumes' directory, its bundle.

    <members>/<id>/root         tmpfs of 64 KiB, shared; the sentry's root. `rootfs` in it is where the sandbox's overlay is mounted at claim
    <members>/<id>/root/agent   read-only bind of the agent program
    <members>/<id>/vol          the same kind of tmpfs; what is mounted below it later appears under /vol in the sandbox
    <members>/<id>/config.json  the spec, beside runsc's logs

Both are shared before the sentry is created, so that later mounts propagate into it; and tiny, since the guest can write into them around its disk limit.
"""

from __future__ import annotations

import contextlib
import errno
import json
from dataclasses import dataclass
from pathlib import Path

from corral.node import spec, syscalls
from corral.node.syscalls import MountFlag


@dataclass(frozen=True)
class MemberPlaces:
    directory: Path

    @property
    def id(self) -> str:
        return self.directory.name

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def rootfs(self) -> Path:
        return self.root / spec.ROOTFS

    @property
    def agent(self) -> Path:
        """Where the host can read the guest agent it was made with."""
        return self.root / spec.AGENT.lstrip("/")

    @property
    def volumes(self) -> Path:
        return self.directory / "vol"

    @property
    def panic_log(self) -> Path:
        return self.directory / "panic.log"

    @property
    def runsc_log(self) -> Path:
        return self.directory / "runsc.log"

    @staticmethod
    def excerpt(file: Path) -> str:
        """The beginning of one of the logs, where the cause is; empty when there is none."""
        try:
            with file.open("rb") as log:
                return log.read(8192).decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def make(self, agent: Path) -> None:
        self.directory.mkdir(mode=0o700)
        for place in (self.root, self.volumes):
            place.mkdir()
            syscalls.mount("tmpfs", place, "tmpfs", flags=MountFlag.NOSUID | MountFlag.NODEV, data="size=64k,nr_inodes=64,mode=755")
            syscalls.make_shared(place)
        for name in spec.ROOT_DIRECTORIES:
            (self.root / name).mkdir()
        self.agent.touch(mode=0o555)
        syscalls.bind(agent, self.agent, read_only=True)
        config = spec.member(root=self.root, volumes=self.volumes, hostname="sandbox")
        (self.directory / "config.json").write_text(json.dumps(config))

    def remove(self) -> None:
        """Unmount and delete all of it; what is missing already is no error. The sentry must be dead."""
        for place in (self.root, self.volumes):
            # Lazily, which takes everything mounted below with it in one step.
            with contextlib.suppress(FileNotFoundError):
                _unmount_all(place)
                place.rmdir()
        for file in ("config.json", "runsc.log", "panic.log"):
            (self.directory / file).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self.directory.rmdir()


def _unmount_all(place: Path) -> None:
    try:
        while True:
            syscalls.umount(place, lazy=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not a mount point (any more)
            raise
