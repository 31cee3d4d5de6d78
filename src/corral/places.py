"""Where Corral keeps what: one home for what lasts, one directory under /run for what dies with the machine."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


def default_home() -> Path:
    """`CORRAL_HOME`, else /var/lib/corral for root, else `$XDG_DATA_HOME/corral`."""
    if value := os.environ.get("CORRAL_HOME"):
        return Path(value).absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/corral")
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "corral"


@dataclass(frozen=True)
class Places:
    """The directories and files of one installation. Nothing is created by looking at a name."""

    home: Path

    @cached_property
    def tag(self) -> str:
        """`corral-<8 hex digits of the home's hash>`: every cgroup, namespace, veth, nft table and mount of this installation carries it."""
        return "corral-" + hashlib.sha256(os.fsencode(self.home.absolute())).hexdigest()[:8]

    @cached_property
    def run(self) -> Path:
        return Path("/run") / self.tag

    @property
    def database(self) -> Path:
        return self.home / "corral.db"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    @property
    def engines(self) -> Path:
        return self.home / "engines"

    @property
    def pool_image(self) -> Path:
        """The sparse loop file with the XFS pool."""
        return self.home / "pool.xfs"

    @property
    def pool(self) -> Path:
        """Where the pool is mounted (or, without a loop file, simply is)."""
        return self.home / "pool"

    @property
    def disks(self) -> Path:
        """Writable layers, one image file for each sandbox."""
        return self.pool / "disks"

    @property
    def snapshots(self) -> Path:
        """Disks of snapshots and checkpoints, and what they are of. In the pool, since they share blocks with the disks of sandboxes."""
        return self.pool / "snapshots"

    @property
    def volumes(self) -> Path:
        """Volumes, one image file each."""
        return self.pool / "volumes"

    @property
    def memory(self) -> Path:
        """Memory of paused sandboxes and of snapshots that have theirs, a directory each. Not in the pool: nothing of it is shared, and a file in a file costs time."""
        return self.home / "memory"

    @property
    def paused(self) -> Path:
        """Disks of sandboxes that are being resumed, as they were: for the case that it fails."""
        return self.pool / "paused"

    @property
    def layers(self) -> Path:
        """Unpacked, immutable layers of images."""
        return self.home / "layers"

    @property
    def images(self) -> Path:
        """One JSON document for each image: its layers and defaults."""
        return self.home / "images"

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def uploads(self) -> Path:
        """Files and archives that images are made of, until they have been used."""
        return self.home / "uploads"

    @property
    def builds(self) -> Path:
        """Where files of images are put together; emptied at every start."""
        return self.home / "builds"

    @property
    def contents(self) -> tuple[Path, ...]:
        """The directories of everything that sandboxes wrote or that they are made of: what is encrypted where that was asked for. `pool_image` comes out of the pool's."""
        return self.pool, self.memory, self.layers, self.spool, self.uploads, self.builds

    @property
    def disk_key(self) -> Path:
        """The key by which the disk key is sealed, unless another is named."""
        return self.keys / "disk.key"

    @property
    def sealed_disk_key(self) -> Path:
        return self.keys / "disk.sealed"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def members(self) -> Path:
        """Mount points of pool members and claimed sandboxes."""
        return self.run / "members"

    @property
    def boxes(self) -> Path:
        """One JSON record for each claimed sandbox, from which a new server adopts it."""
        return self.run / "boxes"

    @property
    def switch(self) -> Path:
        """Where the network namespace is mounted that all sandboxes' devices are in."""
        return self.run / "switch"

    @property
    def egress_socket(self) -> Path:
        return self.run / "egress.sock"

    @property
    def egress_pid(self) -> Path:
        """The number of the egress process."""
        return self.run / "egress.pid"

    @property
    def preview_socket(self) -> Path:
        return self.run / "preview.sock"

    @property
    def preview_pid(self) -> Path:
        """The number of the preview process."""
        return self.run / "preview.pid"

    @property
    def ssh_socket(self) -> Path:
        """Where the server answers its SSH process."""
        return self.run / "ssh.sock"

    @property
    def ssh_pid(self) -> Path:
        """The number of the SSH process, and its port."""
        return self.run / "ssh.pid"

    @property
    def holder_socket(self) -> Path:
        return self.run / "holder.sock"
