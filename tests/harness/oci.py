"""Images made and read by other people's programs: umoci and skopeo."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from corral.images.oci.documents import INDEXES, Platform
from corral.node import rootfs
from harness.server import free_port

MISSING = [name for name in ("docker-registry", "skopeo", "umoci") if shutil.which(name) is None]
Change = Callable[[Path], None]

_BCRYPT = "$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK"


def program(*argv: str | Path) -> str:
    """Run one to its end; what it prints."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{argv[0]}: {done.stderr}{done.stdout}"
    return done.stdout


class Layout:
    """An OCI image layout that umoci looks after, with one image `v1` in it."""

    def __init__(self, directory: Path, *, new: bool = True) -> None:
        self.path = directory
        if new:
            program("umoci", "init", "--layout", directory)
            program("umoci", "new", "--image", self.image)

    @property
    def image(self) -> str:
        return f"{self.path}:v1"

    def layer(self, change: Change) -> None:
        """One more: what `change` does to the root file system."""
        bundle = self.path.with_name(f"{self.path.name}-bundle")
        program("umoci", "unpack", "--image", self.image, bundle)
        change(bundle / "rootfs")
        program("umoci", "repack", "--image", self.image, bundle)
        program("rm", "-r", bundle)

    def configure(self, *options: str) -> None:
        program("umoci", "config", "--image", self.image, *options)

    def archive(self, target: Path, *, docker: bool = False) -> Path:
        """Written as an archive, of OCI's kind or of `docker save`'s."""
        program("skopeo", "copy", f"oci:{self.image}", f"docker-archive:{target}:corral/test:v1" if docker else f"oci-archive:{target}")
        return target

    def unpacked(self, target: Path) -> Path:
        """Its root file system, by umoci."""
        program("umoci", "unpack", "--image", self.image, target)
        return target / "rootfs"


def manifest(root: Path) -> dict[str, object]:
    """All that counts of the files below a directory, by their paths."""
    found: dict[str, object] = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            relative = str(path.relative_to(root))
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG and status.st_nlink > 1:
                inodes.setdefault((status.st_dev, status.st_ino), []).append(relative)
            content: object = None
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            attributes = {attribute: os.getxattr(path, attribute, follow_symlinks=False) for attribute in os.listxattr(path, follow_symlinks=False)}
            attributes = {attribute: value for attribute, value in attributes.items() if not attribute.startswith("trusted.overlay.")}
            found[relative] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, content, attributes)
    found["hard links"] = sorted(sorted(names) for names in inodes.values() if len(names) > 1)
    return found


def seen(layers: list[Path], room: Path) -> dict[str, object]:
    """The same of an image's layers, as a sandbox would have them."""
    room.mkdir()
    rootfs.mount_view(room, layers)
    try:
        return manifest(room)
    finally:
        program("umount", room)


def inspected(archive: Path) -> dict[str, Any]:
    """What skopeo says of an archive."""
    found: dict[str, Any] = json.loads(program("skopeo", "inspect", "--config", "--raw", f"oci-archive:{archive}"))
    return found


def media_types(layout: Path) -> set[str]:
    """Of the layers of a layout's one image."""
    [found] = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = json.loads((layout / "blobs" / found["digest"].replace(":", "/")).read_bytes())
    return {layer["mediaType"] for layer in manifest["layers"]}


class Registry:
    """Debian's docker-registry on loopback. `closed`: only `reader` with the password `s3cret` may."""

    def __init__(self, directory: Path, *, closed: bool = False) -> None:
        directory.mkdir()
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        settings = ["version: 0.1", f"storage: {{filesystem: {{rootdirectory: {directory}}}}}", f"http: {{addr: '{self.address}'}}", "log: {level: error}"]
        if closed:
            (directory / "passwords").write_text(f"reader:{_BCRYPT}\n")
            settings.append(f"auth: {{htpasswd: {{realm: test, path: {directory}/passwords}}}}")
        (directory / "config.yml").write_text("\n".join(settings) + "\n")
        self.process = subprocess.Popen(["docker-registry", "serve", directory / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not _listens(port):
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.02)

    def push(self, layout: Layout, name: str, *options: str) -> str:
        """Give it an image; what it is then called."""
        program("skopeo", "copy", "--dest-tls-verify=false", *options, f"oci:{layout.image}", f"docker://{self.address}/{name}")
        return f"{self.address}/{name}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


class Awkward:
    """A registry of one image layout that makes it hard: it wants a token, is busy at first, leads to another address for blobs, and cuts them off.

    `spoilt`: it changes a byte of each layer. `ranges`: it can give a part of a blob.
    """

    def __init__(self, layout: Layout, *, spoilt: bool = False, ranges: bool = True, cut: int = 50_000) -> None:
        self.layout, self.spoilt, self.ranges, self.cut = layout, spoilt, ranges, cut
        self.asked: list[tuple[str, str | None, str | None]] = []
        """Path, authorization and range of each request."""
        self._busy = 2
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                registry._answer(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in (self._server, self._other)]
        for thread in self.threads:
            thread.start()

    @property
    def ref(self) -> str:
        return f"127.0.0.1:{self._server.server_port}/awkward/image:v1"

    def close(self) -> None:
        for server in (self._server, self._other):
            server.shutdown()
            server.server_close()
        for thread in self.threads:
            thread.join()

    def _answer(self, to: http.server.BaseHTTPRequestHandler) -> None:
        self.asked.append((to.path, to.headers["Authorization"], to.headers["Range"]))
        mine = to.server is self._server
        if to.path.startswith("/token?"):
            given = to.headers["Authorization"] == "Basic " + base64.b64encode(b"reader:s3cret").decode()
            self._give(to, 200 if given else 401, b'{"token": "the-token"}')
        elif mine and to.headers["Authorization"] != "Bearer the-token":
            challenge = f'Bearer realm="http://127.0.0.1:{self._server.server_port}/token",service="test",scope="repository:awkward/image:pull"'
            self._give(to, 401, b"", ("WWW-Authenticate", challenge))
        elif mine and self._busy:
            self._busy -= 1
            self._give(to, 429, b"", ("Retry-After", "0"))
        elif "/manifests/" in to.path:
            wanted = json.loads((self.layout.path / "index.json").read_bytes())["manifests"][0]
            self._give(to, 200, self._blob(wanted["digest"]), ("Content-Type", wanted["mediaType"]))
        elif mine:
            self._give(to, 307, b"", ("Location", f"http://127.0.0.1:{self._other.server_port}{to.path}"))
        else:
            self._part(to, self._blob(to.path.rpartition("/")[2]))

    def _blob(self, digest: str) -> bytes:
        return (self.layout.path / "blobs" / digest.replace(":", "/")).read_bytes()

    def _part(self, to: http.server.BaseHTTPRequestHandler, blob: bytes) -> None:
        if self.spoilt and blob.startswith(b"\x1f\x8b"):
            blob = blob[:-5] + bytes([blob[-5] ^ 1]) + blob[-4:]
        start = 0
        if to.headers["Range"] and self.ranges:
            start = int(to.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        to.send_response(206 if start else 200)
        to.send_header("Content-Length", str(len(blob) - start))
        to.end_headers()
        if to.command == "GET":
            many = self.cut * (1 if self.ranges else sum(path == to.path for path, *_ in self.asked))
            to.wfile.write(blob[start : start + many])
        to.close_connection = True

    def _give(self, to: http.server.BaseHTTPRequestHandler, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        to.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            to.send_header(name, value)
        to.end_headers()
        if to.command == "GET":
            to.wfile.write(body)


def unpacked(archive: Path, target: Path) -> Path:
    """The root file system of an image in an archive, by umoci."""
    layout = target.with_name(f"{target.name}-layout")
    program("skopeo", "copy", f"oci-archive:{archive}", f"oci:{layout}:v1")
    program("umoci", "unpack", "--image", f"{layout}:v1", target)
    return target / "rootfs"


def index_of(layout: Layout, target: Path) -> Path:
    """A layout whose one image is for this machine's platform, and for others, whose manifests are not what they seem."""
    program("cp", "-r", layout.path, target)
    index = json.loads((target / "index.json").read_bytes())
    [mine] = index["manifests"]
    others = [
        {"os": "linux", "architecture": "s390x"},
        {"os": "linux", "architecture": Platform.parse(None).architecture},
        {"os": "windows", "architecture": "amd64"},
    ]
    raw = json.dumps({"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [{**mine, "annotations": {}, "platform": other} for other in others]}).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (target / "blobs/sha256" / digest).write_bytes(raw)
    chosen = {"mediaType": INDEXES[0], "digest": f"sha256:{digest}", "size": len(raw), "annotations": {"org.opencontainers.image.ref.name": "v1"}}
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [chosen]}))
    return target
