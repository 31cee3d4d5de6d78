"""Encryption at rest, on a medium of its own: what sandboxes wrote is not on it, it is all there for who has the key, and nothing is harmed by who has not."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from corral import Client, Sandbox, Volume, spawn
from corral.errors import SetupError
from corral.node import at_rest, syscalls
from corral.node.at_rest import AtRest
from corral.node.disk_pool import DiskPool
from corral.places import Places
from corral.setup.kernel import probe_at_rest
from corral.setup.machine import this_machine
from corral.store.disk_key import SealedDiskKey
from corral.store.keyring import DISK, FileKeyRing
from harness import homes, leaks
from harness.api import Api
from harness.medium import Medium, medium
from harness.server import Server

pytestmark = pytest.mark.skipif(not Path("/sys/fs/ext4/features/encryption").exists(), reason="this kernel has no fscrypt")

READABLE = {
    "corral.db",
    "corral.db-wal",
    "corral.db-shm",
    "keys",
    "images",
    "pulled",
    "engines",
    "cache",
    "logs",
    "server.pid",
    "server-under-test.log",
    "lost+found",
    ".cache",
    ".config",
}
"""What docs/state.md names as not encrypted, and what a test puts there."""


def up(places: Places, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`corral up` where it must be refused."""
    env = {**os.environ, "CORRAL_HOME": str(places.home), "HOME": str(places.home)}
    return subprocess.run(
        [sys.executable, "-m", "corral", "up", "--port", "0", "--pool", "0", *arguments], env=env, capture_output=True, text=True, timeout=100, check=False
    )


@contextmanager
def served(medium: Medium, shared: Places) -> Iterator[tuple[Server, Places]]:
    """A server for a home that is the whole medium, not started yet; ended with everything of it in the end."""
    places = Places(medium.path)
    homes.furnish(places, shared, ["tiny"])
    server = Server(places.home)
    try:
        yield server, places
    finally:
        server.down()
    assert leaks.of_ended_home(places) == []
    assert "still uses" not in server.tail()


def write_everywhere(server: Server, client: Client, tmp_path: Path) -> tuple[dict[str, bytes], Sandbox, Sandbox]:
    """A word of its own in each place that sandboxes write to; a sandbox that runs, and one that is paused. No word is in a command."""
    words = {place: uuid.uuid4().hex.encode() for place in ("disk", "snapshot", "volume", "memory", "output", "layer")}
    data = Volume.create("data", size=64, client=client)
    box = Sandbox.create("tiny", volumes={"/data": data}, timeout=None, client=client)
    box.files.write("/snapshot", words["snapshot"])
    box.snapshot("kept")
    box.files.write("/disk", words["disk"])
    box.files.write("/data/volume", words["volume"])
    box.files.write("/output", words["output"])
    box.run("cat /output; rm /output").check()
    box.run("sync").check()
    asleep = Sandbox.create("tiny", timeout=None, client=client)
    asleep.files.write("/tmp/memory", words["memory"])
    asleep.pause()
    root = tmp_path / "root.tar"
    with tarfile.open(root, "w") as archive:
        member = tarfile.TarInfo("layer")
        member.size = len(words["layer"])
        archive.addfile(member, io.BytesIO(words["layer"]))
    subprocess.run(
        [sys.executable, "-m", "corral", "image", "import", "--rootfs", root, "--template", "mine"],
        env=server.env,
        check=True,
        capture_output=True,
        timeout=120,
    )
    return words, box, asleep


@pytest.mark.parametrize("encrypt", [True, False], ids=["encrypted", "as usual"])
def test_what_sandboxes_wrote_is_on_the_medium_only_where_it_is_not_encrypted(shared: Places, tmp_path: Path, *, encrypt: bool) -> None:
    with medium() as disk:
        with served(disk, shared) as (server, _):
            server.start(*(["--encrypt"] if encrypt else []))
            with Client(server.url, server.key) as client:
                words, _, _ = write_everywhere(server, client, tmp_path)
        disk.unmount()
        assert disk.find(words.values()) == (set() if encrypt else set(words.values()))


@pytest.mark.timeout(400)  # five starts of a server
def test_everything_of_an_encrypted_home_is_there_for_the_next_server(shared: Places, tmp_path: Path) -> None:
    with medium() as disk, served(disk, shared) as (server, places):
        server.start("--encrypt")
        with Client(server.url, server.key) as client:
            words, box, asleep = write_everywhere(server, client, tmp_path)
            process = box.exec("cat")
            assert {path.name for path in places.home.iterdir() if not path.is_mount() and encrypted(path) is None} <= READABLE
            assert {path for path in places.contents if path != places.pool} | {places.pool_image} <= {
                path for path in places.home.iterdir() if encrypted(path)
            }
            api = Api(server)
            assert "corral_encrypted_at_rest 1.0" in api.request("GET", "/metrics").text
            api.close()

            # A crash: what lived lives on, and nobody asks for the key.
            server.kill()
            server.start()
            assert process.poll() is None
            assert box.files.read("/disk") == words["disk"]

            # The end: the kernel has no key any more.
            server.down()
            with pytest.raises(OSError, match=os.strerror(errno.ENOKEY)):
                places.pool_image.open("rb")
            assert "does not have its key" in probe_at_rest(this_machine(places)).text
            with pytest.raises(SetupError, match="start its server first"):
                at_rest.refuse_closed(places)

            # Another key, or none: refused, and nothing is harmed.
            other = tmp_path / "other.key"
            other.write_bytes(os.urandom(32))
            other.chmod(0o600)
            for arguments, said in (
                ([f"--disk-key-file={other}"], f"does not open with {other}"),
                (["--disk-key-command=head -c 32 /dev/zero | base64"], "this home does not open with the key of"),
                (["--disk-key-command=echo secret; false"], "ended with 1"),
                ([f"--disk-key-file={tmp_path}/nowhere"], f"{tmp_path}/nowhere is missing"),
            ):
                refused = up(places, *arguments)
                assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
                assert "secret" not in refused.stderr.replace("echo secret", "")
            assert not (tmp_path / "nowhere").exists()

            # The same key from a program, and the option that it was made with is not needed.
            server.start(f"--disk-key-command=od -An -v -tx1 {places.disk_key} | tr -d ' \\n'")
            assert box.refresh().state == "stopped"
            box.start()
            assert (box.files.read("/disk"), box.files.read("/data/volume")) == (words["disk"], words["volume"])
            assert asleep.files.read("/tmp/memory") == words["memory"]
            for image, path in (("kept", "/snapshot"), ("mine", "/layer")):
                with Sandbox.create(image, client=client) as child:
                    assert child.files.read(path) == words[path.removeprefix("/")]


def test_a_home_that_cannot_be_encrypted_is_refused_with_the_mend(shared: Places, tmp_path: Path) -> None:
    with medium(encrypts=False) as disk, served(disk, shared) as (server, places):
        refused = up(places, "--encrypt")
        assert refused.returncode == 2
        mend = next(words for words in refused.stderr.split("`") if words.startswith("tune2fs "))
        assert mend in probe_at_rest(this_machine(places)).text
        assert not any(path.exists() for path in (*places.contents, places.sealed_disk_key))
        key = tmp_path / "some.key"
        refused = up(places, f"--disk-key-file={key}")
        assert (refused.returncode, "is not encrypted" in refused.stderr) == (2, True)
        # As it says.
        spawn.run(mend.split(), timeout=60).check()
        server.start("--encrypt", f"--disk-key-file={key}")
        assert encrypted(places.memory)
        assert (key.stat().st_mode & 0o777, places.disk_key.exists()) == (0o600, False)


def test_a_home_with_sandboxes_is_not_encrypted_afterwards(shared: Places) -> None:
    with medium() as disk, served(disk, shared) as (server, places):
        server.start()
        server.down()
        refused = up(places, "--encrypt")
        assert (refused.returncode, "has sandboxes already" in refused.stderr) == (2, True)
        server.start()


def at_rest_of(places: Places, *, wanted: bool = False) -> AtRest:
    return AtRest(places, SealedDiskKey(places.sealed_disk_key, FileKeyRing(places.disk_key, DISK)), wanted=wanted)


def encrypted(path: Path) -> bytes | None:
    """By which key."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return syscalls.encryption_policy(descriptor)
    except OSError as error:
        if error.errno == errno.ENOTTY:  # something is mounted there
            return None
        raise
    finally:
        os.close(descriptor)


async def test_images_made_before_are_taken_in() -> None:
    with medium() as disk:
        places = Places(disk.path)
        layer = places.layers / "im-one"
        layer.mkdir(parents=True)
        word = uuid.uuid4().hex
        (layer / "file").write_text(word)
        os.link(layer / "file", layer / "same")
        os.symlink("file", layer / "link")
        os.mknod(layer / "gone", 0o020600, os.makedev(0, 0))
        # What a server killed over it has left.
        half = places.home / ".new-layers"
        half.mkdir()
        (half / "file").write_text("half")
        home = at_rest_of(places, wanted=True)
        await home.open()
        assert home.on
        assert encrypted(layer / "file") == at_rest.identifier_of(places)
        assert ((layer / "link").read_text(), (layer / "same").stat().st_nlink) == (word, 2)
        assert (layer / "gone").stat().st_rdev == 0
        assert not half.exists()
        await home.close()
        assert not layer.exists()


async def test_a_key_that_another_server_uses_stays_when_a_start_fails() -> None:
    with medium() as disk:
        places = Places(disk.path / "home")
        places.home.mkdir()
        first = at_rest_of(places, wanted=True)
        await first.open()
        second = at_rest_of(places)
        await second.open()
        await second.give_up()
        (places.spool / "goes-on").write_text("on")
        # One that began with the key itself gives it back.
        await first.give_up()
        with pytest.raises(OSError, match=os.strerror(errno.ENOKEY)):
            (places.spool / "no-more").write_text("on")


async def test_nothing_is_taken_for_the_home_that_it_is_not_of() -> None:
    """Two homes on one file system with one key to their keys."""
    with medium() as disk:
        places, other = Places(disk.path / "one"), Places(disk.path / "two")
        for home in (places, other):
            home.home.mkdir()
        one = at_rest_of(places, wanted=True)
        await one.open()
        other.keys.mkdir()
        other.disk_key.write_bytes(places.disk_key.read_bytes())
        other.disk_key.chmod(0o600)
        two = at_rest_of(other, wanted=True)
        await two.open()
        (places.spool / "word").write_text("one")
        await one.close()
        # The other's is another key all the same.
        (other.spool / "word").write_text("two")
        own = places.sealed_disk_key.read_bytes()
        places.sealed_disk_key.write_bytes(other.sealed_disk_key.read_bytes())
        with pytest.raises(SetupError, match="the key of another home"):
            await at_rest_of(places).open()
        (other.spool / "still").write_text("two")
        places.sealed_disk_key.unlink()
        with pytest.raises(SetupError, match=r"disk\.sealed is missing"):
            await at_rest_of(places).open()
        places.sealed_disk_key.write_bytes(own)
        # A directory that one has put there without a policy, or one of the other's.
        (places.builds).rmdir()
        (places.builds).mkdir()
        (places.builds / "plain").write_text("plain")
        await one.open()
        assert (places.spool / "word").read_text() == "one"
        assert encrypted(places.builds / "plain") == encrypted(places.spool)
        await one.close()
        places.builds.rename(disk.path / "away")
        other.builds.rename(places.builds)
        with pytest.raises(SetupError, match="different keys"):
            await one.open()
        await two.close()


async def test_a_pool_that_is_not_encrypted_is_not_taken_into_an_encrypted_home() -> None:
    with medium() as disk:
        places = Places(disk.path)
        home = at_rest_of(places, wanted=True)
        await home.open()
        pool = DiskPool(places, size=1 << 30)
        pool.open()
        assert encrypted(places.pool_image) == at_rest.identifier_of(places)
        pool.close()
        await home.close()
        places.pool_image.rename(disk.path / "own")
        places.pool_image.write_bytes(bytes(4096))
        with pytest.raises(SetupError, match="is not encrypted"):
            await at_rest_of(places).open()
        assert not at_rest.is_open(places, at_rest.identifier_of(places) or b"")


async def test_a_part_of_the_home_that_is_somewhere_else_is_not_left_in_the_clear(tmp_path: Path) -> None:
    with medium() as disk:
        places = Places(disk.path)
        plain = at_rest_of(places)
        places.memory.symlink_to(tmp_path)
        await plain.open()
        assert not plain.on
        with pytest.raises(SetupError, match=f"{places.memory} is somewhere else"):
            await at_rest_of(places, wanted=True).open()
        assert at_rest.identifier_of(places) is None
        places.memory.unlink()
        home = at_rest_of(places, wanted=True)
        await home.open()
        await home.close()
