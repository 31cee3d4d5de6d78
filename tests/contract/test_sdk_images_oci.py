"""Images of registries and archives through the SDK and the command line, with docker-registry, skopeo and umoci at the other end."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pytest

from corral import Client, Image, Sandbox
from corral.errors import Forbidden, ImageNotFound, InvalidArgument, Unauthenticated, Unsupported
from corral.images import Catalog
from corral.places import Places
from harness import oci
from harness.oci import Awkward, Layout, Registry
from harness.server import Server

T = TypeVar("T")

pytestmark = pytest.mark.skipif(bool(oci.MISSING), reason=f"{oci.MISSING} are not installed")


@pytest.fixture
def layout(server: Server, shared_tiny: Path, tmp_path: Path) -> Layout:
    """An image that runs, in two layers: what `tiny` has, and a file nobody else has."""
    made = Layout(tmp_path / "layout")
    made.layer(lambda root: oci.program("cp", "-a", f"{shared_tiny}/.", root) and None)

    def second(root: Path) -> None:
        (root / "word").write_text(uuid.uuid4().hex)
        (root / "noise").write_bytes(os.urandom(200_000))
        (root / "etc/group").unlink()
        os.chown(root / "word", 12, 34)

    made.layer(second)
    made.configure("--config.env=PATH=/bin", "--config.env=WHO=me", "--config.workingdir=/etc", "--config.cmd=/bin/sh", "--config.user=root")
    return made


@pytest.fixture
def shared_tiny(shared: Places) -> Path:
    return Catalog(shared).find("tiny").spec.layers[0]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    made = Registry(tmp_path / "registry")
    yield made
    made.close()


def cli(server: Server, *words: object) -> str:
    done = subprocess.run([sys.executable, "-m", "corral", *map(str, words)], env=server.env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Export:
    """The process that makes an archive, held by a descriptor."""

    def __init__(self, pid: int) -> None:
        self._handle = os.pidfd_open(pid)

    def stop(self) -> None:
        signal.pidfd_send_signal(self._handle, signal.SIGSTOP)

    def ended(self, seconds: float) -> None:
        """Returns when it has. Raises when that takes longer."""
        try:
            assert select.select([self._handle], [], [], seconds)[0], "it goes on"
        finally:
            os.close(self._handle)


def exports(server: Server) -> list[Export]:
    assert server.process is not None
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    pids = [int(pid) for path in children for pid in path.read_text().split()]
    return [Export(pid) for pid in pids if b"corral.images.oci" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def wait_for(look: Callable[[], T]) -> T:
    """What is there soon."""
    deadline = time.monotonic() + 60
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_an_image_of_a_registry_runs_and_goes_back_as_an_archive(server: Server, layout: Layout, registry: Registry, tmp_path: Path) -> None:
    ref = registry.push(layout, "team/app:1")
    name = f"t-{uuid.uuid4().hex[:8]}"
    id = cli(server, "image", "pull", ref, "--template", f"{name}:1").strip()
    lines: list[str] = []
    with Client() as client:
        image = Image.from_registry(ref)
        assert image.build(on_log=lambda line: lines.append(line.text)).id == id
        assert (client.images.get(id).command, lines) == (["/bin/sh"], [])
        with client.sandboxes.create(f"{name}:1") as box:
            assert box.run("stat -c '%u:%g' /word; pwd; echo $WHO; test -e /etc/group || echo gone").stdout == "12:34\n/etc\nme\ngone\n"
            box.run("mkdir /etc/new; echo more > /etc/new/file; rm /noise; rm -r /root; mkdir /root").check()
            box.export(tmp_path / "box.tar")
        built = image.run("echo built > /built").label(a="b").build()
        cli(server, "image", "export", built.id, tmp_path / "built.tar")
        client.images.export(f"{name}:1", tmp_path / "same.tar")
    same, box_config, config = (oci.inspected(tmp_path / file) for file in ("same.tar", "box.tar", "built.tar"))
    assert same["config"] == {"User": "root", "Env": ["PATH=/bin", "WHO=me"], "Cmd": ["/bin/sh"], "WorkingDir": "/etc"}
    assert config["config"]["Labels"] == {"a": "b"}
    assert len(box_config["rootfs"]["diff_ids"]) == len(config["rootfs"]["diff_ids"]) == 3
    # What umoci makes of the archives is what it makes of the image, and what the sandbox did.
    wanted = oci.manifest(layout.unpacked(tmp_path / "umoci"))
    assert oci.manifest(oci.unpacked(tmp_path / "same.tar", tmp_path / "same")) == wanted
    there = oci.manifest(oci.unpacked(tmp_path / "box.tar", tmp_path / "box"))
    assert wanted.keys() ^ there.keys() == {"noise", "etc/new", "etc/new/file", *(f"etc/{own}" for own in ("hostname", "hosts", "resolv.conf"))}
    # And back: as an archive of either kind.
    oci.program("skopeo", "copy", f"oci-archive:{tmp_path / 'built.tar'}", f"docker-archive:{tmp_path / 'docker.tar'}:x/y:z")
    oci.program("skopeo", "inspect", f"docker-archive:{tmp_path / 'built.tar'}")
    again = cli(server, "image", "import", tmp_path / "built.tar").strip()
    for imported in (again, Image.from_archive(tmp_path / "docker.tar").build().id):
        with Sandbox.create(imported) as box:
            assert box.run("cat /built").stdout == "built\n"


def test_layers_of_zstd_are_pulled(server: Server, layout: Layout, registry: Registry, tmp_path: Path) -> None:
    ref = registry.push(layout, "team/zstd:1", "--dest-compress-format=zstd", "--dest-compress", "--format=oci")
    raw = json.loads(oci.program("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{ref}"))
    assert {layer["mediaType"] for layer in raw["layers"]} == {"application/vnd.oci.image.layer.v1.tar+zstd"}
    built = Image.from_registry(ref).build()
    with Client() as client:
        client.images.export(built.id, tmp_path / "zstd.tar")
    assert oci.manifest(oci.unpacked(tmp_path / "zstd.tar", tmp_path / "ours")) == oci.manifest(layout.unpacked(tmp_path / "umoci"))
    with Sandbox.create(built.id) as box:
        assert box.run("stat -c '%u:%g' /word").stdout == "12:34\n"


def test_an_export_ends_with_who_asked_for_it(server: Server) -> None:
    at = urlsplit(server.url)
    with socket.create_connection((str(at.hostname), int(at.port or 0))) as line:
        line.sendall(f"GET /v1/images/base/archive HTTP/1.1\r\nHost: {at.netloc}\r\nAuthorization: Bearer {server.key}\r\n\r\n".encode())
        wait_for(lambda: list((server.home / "builds").glob("im-*.tar")))
        # It stands still before it can come to its end by itself.
        [export] = exports(server)
        export.stop()
    export.ended(60)
    wait_for(lambda: list((server.home / "builds").glob("im-*.tar")) == [])


def test_a_bare_root_file_system(server: Server, layout: Layout, tmp_path: Path) -> None:
    root = layout.unpacked(tmp_path / "root")
    oci.program("tar", "-C", root, "-czf", tmp_path / "root.tgz", ".")
    with Sandbox.create(Image.from_rootfs(tmp_path / "root.tgz").run("echo more > /more").env(PATH="/bin")) as box:
        assert box.run("cat /word /more").stdout == (root / "word").read_text() + "more\n"


def test_what_a_snapshot_stood_on_goes_after_it(server: Server, layout: Layout, tmp_path: Path) -> None:
    """An image that is deleted under a snapshot stays on the disk while that is there, and not longer than until the next prune."""
    image = Image.from_archive(layout.archive(tmp_path / "image.tar")).build()
    document = next(path for path in (server.home / "images").glob("im-*.json") if path.stem == image.id)
    with Client() as client:
        with client.sandboxes.create(image.id) as box:
            snapshot = box.snapshot()
        client.images.delete(image.id)
        with client.sandboxes.create(snapshot.id) as box:
            assert box.files.exists("/word")
        snapshot.delete()
        client.images.prune()
    assert not document.exists()


def test_a_reader_exports_nothing(server: Server, tmp_path: Path) -> None:
    with Client() as client:
        key = client.keys.create(f"k-{uuid.uuid4().hex[:8]}", role="reader")
        with Client(server.url, key.value) as reader, pytest.raises(Forbidden):
            reader.images.export("tiny", tmp_path / "tiny.tar")


def test_an_awkward_registry(server: Server, layout: Layout) -> None:
    """Token, waiting, another host, cuts: what it gives in the end is the image, or nothing."""
    with Client() as client:
        secret = client.secrets.create(f"R_{uuid.uuid4().hex[:8]}", "s3cret")
        for ranges in (True, False):
            awkward = Awkward(layout, ranges=ranges)
            try:
                found = Image.from_registry(awkward.ref, username="reader", auth=secret.name).build(client=client)
                with client.sandboxes.create(found.id) as box:
                    assert box.files.exists("/word")
                with pytest.raises(Unauthenticated):
                    Image.from_registry(awkward.ref, username="other", auth=secret.name).build(force=True)
            finally:
                awkward.close()
            if ranges:
                # Once a byte has come it isn't asked for again.
                assert {range for path, _, range in awkward.asked if "/blobs/" in path} >= {None, "bytes=50000-", "bytes=100000-"}
            assert [who for path, who, _ in awkward.asked if "/blobs/" in path and who not in (None, "Bearer the-token")] == []
        client.images.delete(found.id)
        spoilt = Awkward(layout, spoilt=True)
        try:
            with pytest.raises(InvalidArgument, match="layer"):
                Image.from_registry(spoilt.ref, username="reader", auth=secret.name).build()
        finally:
            spoilt.close()
        assert [path.name for path in (server.home / "layers").glob(".import-*")] == []


def test_who_may_not_have_an_image_does_not_get_it(server: Server, layout: Layout, tmp_path: Path) -> None:
    closed = Registry(tmp_path / "closed", closed=True)
    try:
        ref = closed.push(layout, "private:1", "--dest-creds=reader:s3cret")
        with Client() as client:
            right, wrong = (client.secrets.create(f"R_{uuid.uuid4().hex[:8]}", password).name for password in ("s3cret", "guess"))
            mine = Image.from_registry(ref, username="reader", auth=right).build()
            assert mine.built
            for image in (Image.from_registry(ref), Image.from_registry(ref, username="reader", auth=wrong)):
                with pytest.raises(Unauthenticated):
                    image.build(force=True)
            with pytest.raises(ImageNotFound):
                Image.from_registry(ref + "x", username="reader", auth=right).build()
            other = client.projects.create(f"p-{uuid.uuid4().hex[:8]}")
            key = client.keys.create(f"k-{uuid.uuid4().hex[:8]}", project=other.name)
            with Client(server.url, key.value) as theirs:
                with pytest.raises(Unauthenticated):
                    Image.from_registry(ref).build(client=theirs)
                with pytest.raises(ImageNotFound):
                    theirs.sandboxes.create(mine.id)
                with pytest.raises(ImageNotFound):
                    theirs.images.export(mine.id, tmp_path / "stolen.tar")
        assert not (tmp_path / "stolen.tar").exists()
    finally:
        closed.close()


def test_the_right_one_of_several_platforms(server: Server, layout: Layout, registry: Registry, tmp_path: Path) -> None:
    ref = registry.push(layout, "multi:1")
    index = oci.index_of(layout, tmp_path / "multi")
    oci.program("skopeo", "copy", "--all", "--dest-tls-verify=false", f"oci:{index}:v1", f"docker://{registry.address}/multi:all")
    for source in (Image.from_registry(f"{registry.address}/multi:all"), Image.from_registry(ref)):
        with Sandbox.create(source) as box:
            assert box.files.exists("/word")
    with pytest.raises(Unsupported, match="linux/s390x"):
        Image.from_registry(f"{registry.address}/multi:all", platform="linux/s390x").build()
    shutil.rmtree(index)
