"""Layers and archives that mean harm: refused, with nothing outside of where they were to be unpacked, and nothing left of them inside."""

from __future__ import annotations

import gzip
import http.server
import io
import json
import os
import resource
import struct
import tarfile
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral import spawn
from corral.errors import CorralError, DiskFull, InternalError, InvalidArgument, TooLarge, Unauthenticated, Unsupported
from corral.images import Catalog
from corral.images.library import Library
from corral.images.oci import job
from corral.images.oci.archive import Archive
from corral.images.oci.documents import LARGEST, Platform, digest_of
from corral.images.oci.layer import opened
from corral.images.oci.reference import Reference
from corral.images.oci.registry import Access, Registry
from corral.images.oci.tally import Limits, Tally
from corral.images.oci.unpack import Unpacker
from corral.node import trees
from corral.node.volume_files import VolumeFiles
from corral.places import Places
from corral.schema.image import FromArchive

pytestmark = pytest.mark.no_engine

Entry = tuple[str, bytes, str, bytes] | tuple[str, bytes, str, bytes, dict[str, str]]
REG, SYM, LNK, DIR, CHR = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE


def tar(*entries: Entry) -> bytes:
    """Entries: name, type, what it links to, content, and further headers."""
    out = bytearray()
    for name, kind, link, content, *more in entries:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size, info.mode = kind, link, len(content) if kind == REG else 0, 0o755
        info.pax_headers = more[0] if more else {}
        out += info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)
    return bytes(out) + bytes(1024)


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """A root to unpack into, beside something that must stay as it is."""
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("mine")
    return tmp_path


def unpack(room: Path, *layers: bytes, limits: Limits | None = None) -> Path:
    root = os.open(room / "root", os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpacker = Unpacker(root, Tally(limits or Limits(), lambda _text: None))
        for layer in layers:
            with opened(io.BytesIO(layer)) as content:
                unpacker.layer(content)
    finally:
        os.close(root)
    return room / "root"


def untouched(room: Path) -> None:
    assert sorted(path.name for path in room.iterdir()) == ["outside", "root"]
    assert [(path.name, path.read_text()) for path in (room / "outside").iterdir()] == [("file", "mine")]


OUT = "../" * 20
REFUSED: dict[str, tuple[Entry, ...]] = {
    "a name that leads out": (("../outside/file", REG, "", b"x"),),
    "a name that leads out later": (("a/b/../../../outside/file", REG, "", b"x"),),
    "a hard link out": (("a", LNK, "../outside/file", b""),),
    "a hard link to nothing": (("a", LNK, "b", b""),),
    "a hard link to a directory": (("d", DIR, "", b""), ("a", LNK, "d", b"")),
    "a hard link to itself": (("a", LNK, "a", b""),),
    "a file twice": (("a", REG, "", b"1"), ("a", REG, "", b"2")),
    "a file over its own directory": (("d/a", REG, "", b"1"), ("d", REG, "", b"2")),
    "something below a file": (("a", REG, "", b"1"), ("a/b", REG, "", b"2")),
    "a link in circles": (("a", SYM, "b", b""), ("b", SYM, "a", b""), ("a/x", REG, "", b"1")),
    "a device": (("sda", CHR, "", b""),),
    "a whiteout of its directory": (("d", DIR, "", b""), ("d/.wh...", REG, "", b"")),
    "a whiteout of nothing": (("d", DIR, "", b""), ("d/.wh.", REG, "", b"")),
    "a long name": (("n" * 300, REG, "", b""),),
    "overlayfs' own words": (("d", DIR, "", b"", {"SCHILY.xattr.trusted.overlay.redirect": "/etc"}),),
    "an attribute of no kind": (("f", REG, "", b"", {"SCHILY.xattr.nothing": "x"}),),
    "an owner nobody is": (("f", REG, "", b"", {"uid": "-1"}),),
    "a time that never was": (("f", REG, "", b"", {"mtime": "9" * 400}),),
    "a root that is a file": (("./", REG, "", b""),),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(room: Path, what: str) -> None:
    with pytest.raises((InvalidArgument, Unsupported)):
        unpack(room, tar(*REFUSED[what]))
    untouched(room)


def test_symbolic_links_lead_nowhere_else(room: Path) -> None:
    """They are kept as they are, and followed as a sandbox would follow them."""
    outside = str(room / "outside")
    root = unpack(
        room,
        tar(
            ("abs", SYM, outside, b""),
            ("up", SYM, f"{OUT}{outside}", b""),
            ("abs/new", REG, "", b"1"),
            ("up/other", REG, "", b"2"),
            ("abs/file", REG, "", b"3"),
        ),
        tar(("abs/.wh.file", REG, "", b"")),
    )
    untouched(room)
    inner = root / outside.lstrip("/")
    assert sorted(path.name for path in inner.iterdir()) == ["new", "other"]
    assert os.readlink(root / "abs") == outside


def test_a_link_put_in_place_of_a_directory_hides_nothing_from_us(room: Path) -> None:
    """A later layer replaces a directory that was used, and then uses it."""
    outside = str(room / "outside")
    unpack(
        room,
        tar(("d/x", REG, "", b"1")),
        tar(("d/y", REG, "", b"1"), ("e", DIR, "", b"")),
        tar((".wh.d", REG, "", b""), ("d", SYM, outside, b""), ("d/file", REG, "", b"theirs")),
    )
    untouched(room)


def test_whiteouts_take_what_is_below_and_not_what_came_along(room: Path) -> None:
    root = unpack(
        room,
        tar(("d/old", REG, "", b"1"), ("d/sub/old", REG, "", b"1"), ("e", REG, "", b"1")),
        tar(
            ("d/new", REG, "", b"2"),
            ("d/sub/new", REG, "", b"2"),
            ("d/.wh..wh..opq", REG, "", b""),
            ("e", REG, "", b"2"),
            (".wh.e", REG, "", b""),
            (".wh.never", REG, "", b""),
        ),
    )
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == ["d/new", "d/sub/new", "e"]


def test_bombs(room: Path) -> None:
    with pytest.raises(TooLarge):
        unpack(room, gzip.compress(tar(("zeros", REG, "", bytes(8 << 20)))), limits=Limits(size=4 << 20))
    with pytest.raises(TooLarge):
        unpack(room, tar(*[(f"f{number}", REG, "", b"") for number in range(50)]), limits=Limits(entries=20))
    # A header that claims 8 GB, and isn't followed by them.
    claims = tarfile.TarInfo("x")
    claims.type, claims.size = tarfile.XHDTYPE, (8 << 30) - 1
    with pytest.raises(InvalidArgument):
        unpack(room, claims.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    for cut in (
        gzip.compress(tar(("f", REG, "", os.urandom(100_000))))[:-2000],
        tar(("f", REG, "", os.urandom(100_000)))[:50_000],
        b"\x1f\x8bgarbage",
        b"\x28\xb5\x2f\xfdgarbage",
        b"x" * 5000,
    ):
        with pytest.raises(InvalidArgument):
            unpack(room, cut)
    untouched(room)


names = st.sampled_from(
    [
        "a",
        "b",
        "a/b",
        "a/../b",
        "../outside/file",
        "/abs",
        "./",
        ".wh.a",
        "a/.wh..wh..opq",
        ".wh..",
        "a/b/c",
        "l",
        "l/x",
        "l/l",
        "dev/null",
        "n" * 256,
        "\udcff",
    ]
)
kinds = st.sampled_from([REG, SYM, LNK, DIR, CHR, tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"])
links = st.sampled_from(["", "a", "b", "/", "..", "../outside", "../outside/file", "/a/b", "l", "a/b", "."])
extra = st.dictionaries(
    st.sampled_from(["SCHILY.xattr.user.x", "SCHILY.xattr.trusted.overlay.opaque", "uid", "mtime", "path", "linkpath", "size", "GNU.sparse.map"]),
    st.sampled_from(["y", "-1", "0", "../outside/file", "99999999999", "1.5"]),
    max_size=2,
)
layers = st.lists(st.lists(st.tuples(names, kinds, links, st.binary(max_size=20), extra), max_size=12), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers, st.data())
def test_any_layers_stay_where_they_belong(room: Path, entries: list[list[Entry]], data: st.DataObject) -> None:
    raw = [tar(*layer) for layer in entries]
    if data.draw(st.booleans()):
        spoilt = bytearray(raw[-1])
        for _ in range(data.draw(st.integers(1, 8))):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        raw[-1] = bytes(spoilt)
    try:
        unpack(room, *raw)
    except CorralError:
        pass
    untouched(room)
    assert threading.active_count() < 50


def archive(room: Path, change: Callable[[dict[str, bytes]], None] = lambda _files: None) -> Path:
    """An OCI archive of one small image, with a change to its files."""
    layer = tar(("f", REG, "", b"x"))
    here = Platform.parse(None)
    config = json.dumps({"architecture": here.architecture, "os": here.os, "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}).encode()
    blob = gzip.compress(layer)
    pointers = [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest_of(one), "size": len(one)} for one in (config, blob)]
    manifest = json.dumps({"schemaVersion": 2, "config": pointers[0], "layers": [pointers[1]]}).encode()
    top = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest_of(manifest), "size": len(manifest)}
    files = {"blobs/" + digest_of(one).replace(":", "/"): one for one in (config, blob, manifest)}
    files |= {"oci-layout": b"{}", "index.json": json.dumps({"manifests": [top]}).encode(), "layer": blob, "manifest": manifest}
    change(files)
    (room / "image.tar").write_bytes(tar(*[(name, REG, "", content) for name, content in files.items()]))
    return room / "image.tar"


def _spoil(files: dict[str, bytes], of: str) -> None:
    name = "blobs/" + digest_of(files[of]).replace(":", "/")
    files[name] = files[name][:-9] + bytes([files[name][-9] ^ 1]) + files[name][-8:]


def _tops(files: dict[str, bytes], *more: dict[str, object]) -> None:
    """The one image of the index, in these variants of its entry."""
    [top] = json.loads(files["index.json"])["manifests"]
    files["index.json"] = json.dumps({"manifests": [{**top, **one} for one in more]}).encode()


HERE = {"os": "linux", "architecture": Platform.parse(None).architecture}
OTHER = "sha256:" + "0" * 64
SPOILT: dict[str, Callable[[dict[str, bytes]], None]] = {
    "a layer": lambda files: _spoil(files, "layer"),
    "a manifest": lambda files: _spoil(files, "manifest"),
    "no layer": lambda files: files.pop("blobs/" + digest_of(files["layer"]).replace(":", "/")) and None,
    "a short layer": lambda files: files.update({"blobs/" + digest_of(files["layer"]).replace(":", "/"): files["layer"][:-1]}),
    "no index": lambda files: files.pop("index.json") and None,
    "an index that is none": lambda files: files.update({"index.json": b"[1]"}),
    "two images": lambda files: _tops(files, {}, {"digest": OTHER}),
    "two images for one platform": lambda files: _tops(files, {"platform": HERE}, {"platform": HERE, "digest": OTHER}),
    "two images, one for a platform": lambda files: _tops(files, {"platform": HERE}, {"digest": OTHER}),
    "a name twice": lambda files: files.update({"./oci-layout": b"{}"}),
}


@pytest.mark.parametrize("what", SPOILT)
async def test_archives_that_are_not_what_they_say(room: Path, what: str) -> None:
    path = archive(room, SPOILT[what])
    (room / "layers").mkdir()
    with pytest.raises(InvalidArgument):
        await job.run(job.Unpack(str(room / "layers"), ".import-x", str(path), Platform.parse(None)), print)
    assert list((room / "layers").iterdir()) == []


@pytest.mark.parametrize(
    "tops",
    [({}, {}), ({"platform": HERE}, {"platform": HERE}), ({"platform": HERE}, {"platform": {"os": "windows", "architecture": "amd64"}, "digest": OTHER})],
)
async def test_one_image_by_several_names_or_for_several_platforms(room: Path, tops: tuple[dict[str, object], ...]) -> None:
    path = archive(room, lambda files: _tops(files, *tops))
    (room / "layers").mkdir()
    answer = await job.run(job.Unpack(str(room / "layers"), ".import-x", str(path), Platform.parse(None)), print)
    assert (room / "layers" / answer["layers"][0] / "f").read_bytes() == b"x"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_archive_is_read_or_refused(room: Path, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(archive(room).read_bytes())
    for at, byte in changes:
        raw[at % len(raw)] = byte
    (room / "image.tar").write_bytes(raw)
    try:
        source = Archive(room / "image.tar", Platform.parse(None))
    except InvalidArgument:
        return
    try:
        found = source.find()
        for layer in found.layers:
            with source.layer(layer) as blob, opened(blob) as content:
                content.finish(diff_id=layer.diff_id, digest=layer.digest, size=layer.size)
    except (InvalidArgument, Unsupported):
        pass
    finally:
        source.close()


def saved(path: Path, *layers: bytes, diff_id: str | None = None) -> Path:
    """As `docker save` writes an image; of one layer it may say that it has another digest."""
    here = Platform.parse(None)
    rootfs = {"type": "layers", "diff_ids": [diff_id or digest_of(layer) for layer in layers]}
    config = json.dumps({"architecture": here.architecture, "os": here.os, "rootfs": rootfs}).encode()
    manifest = json.dumps([{"Config": "config.json", "Layers": [f"{number}.tar" for number in range(len(layers))]}]).encode()
    files = [(f"{number}.tar", layer) for number, layer in enumerate(layers)]
    path.write_bytes(tar(*[(name, REG, "", content) for name, content in (("config.json", config), *files, ("manifest.json", manifest))]))
    return path


BIG = ("big", REG, "", bytes(900_000))
GREEDY: dict[str, tuple[bytes, ...]] = {
    "a file in each layer": tuple(tar((f"f{number}", REG, "", bytes(900_000))) for number in range(3)),
    "links to a file of a layer below": (tar(BIG), tar(("again", LNK, "big", b""))),
    "empty files": (tar(*[(f"f{number}", REG, "", b"") for number in range(500)]),),
    "attributes": (tar(*[(f"f{number}", REG, "", b"", {"SCHILY.xattr.user.x": "x" * 3000}) for number in range(250)]),),
    "whiteouts": (tar(*[(f"d/.wh.f{number}", REG, "", b"") for number in range(500)]),),
}


@pytest.mark.parametrize("what", GREEDY)
async def test_a_limit_is_the_whole_images(room: Path, what: str) -> None:
    (room / "layers").mkdir()
    path = saved(room / "greedy.tar", *GREEDY[what])
    for size, suffices in ((1_500_000, False), (20_000_000, True)):
        work = job.Unpack(str(room / "layers"), ".import-x", str(path), Platform.parse(None), limits=Limits(size=size))
        if suffices:
            await job.run(work, print)
        else:
            with pytest.raises(TooLarge):
                await job.run(work, print)
            for left in (room / "layers").iterdir():
                trees.remove(left)


async def test_many_notes_are_few_and_short(room: Path) -> None:
    (room / "layers").mkdir()
    notes: list[str] = []
    devices: list[Entry] = [(f"dev/{number}{'x' * 50_000}", CHR, "", b"") for number in range(100)]
    await job.run(job.Unpack(str(room / "layers"), ".import-x", str(saved(room / "notes.tar", tar(*devices))), Platform.parse(None)), notes.append)
    assert sum("is a device" in note for note in notes) == 20
    assert "80 more are left out" in notes
    assert max(map(len, notes)) < 1000


def test_what_the_node_cannot_do_is_not_the_images_fault(room: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InternalError, match="large"):
            unpack(room, tar(BIG))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_is_removed_while_it_is_imported_again_stays(room: Path) -> None:
    places = Places(room / "home")
    library = Library(places, Catalog(places))
    raw = saved(room / "image.tar", tar(("f", REG, "", b"x"))).read_bytes()
    digest = digest_of(raw).removeprefix("sha256:")

    async def pieces() -> AsyncGenerator[bytes]:
        yield raw

    await library.uploads.add("mine", digest, pieces())
    source = FromArchive(kind="archive", upload=digest)
    for known in (False, True):
        async with library.unpack("mine", source, print) as found:
            await library.remove(found.image)
        assert library.is_imported(found.image), known
    with pytest.raises(InvalidArgument):
        async with library.unpack("mine", source, print) as found:
            await library.remove(found.image)
            raise InvalidArgument("it is not wanted after all")
    assert not library.is_imported(found.image)
    assert list(places.layers.iterdir()) == []


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq"])
async def test_a_name_that_means_something_else_in_an_archive_is_not_exported(room: Path, name: str) -> None:
    (room / "root/d").mkdir()
    (room / "root/d" / name).touch()
    with pytest.raises(Unsupported, match=r"d/\.wh\."):
        await job.run(job.Export([str(room / "root")], str(room / "out.tar"), {}, None, "2020-01-01T00:00:00Z"), print)


async def test_an_archive_for_which_there_is_no_room(room: Path) -> None:
    (room / "root/f").write_bytes(os.urandom(2 << 20))
    (room / "small").mkdir()
    spawn.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(room / "small")], timeout=60).check()
    try:
        with pytest.raises(DiskFull):
            await job.run(job.Export([str(room / "root")], str(room / "small/out.tar"), {}, None, "2020-01-01T00:00:00Z"), print)
    finally:
        spawn.run(["umount", str(room / "small")], timeout=60).check()


async def test_deep_trees_are_exported_or_refused(room: Path) -> None:
    deep(room / "root", 1500)
    await job.run(job.Export([str(room / "root")], str(room / "out.tar"), {}, None, "2020-01-01T00:00:00Z"), print)
    with closing(Archive(room / "out.tar", Platform.parse(None))) as source:
        assert len(source.find().layers) == 1
    deep(room / "root" / "/".join("d" * 1500), 1000)
    with pytest.raises(Unsupported, match="deep"):
        await job.run(job.Export([str(room / "root")], str(room / "more.tar"), {}, None, "2020-01-01T00:00:00Z"), print)
    trees.remove(room / "root/d")


async def test_layers_of_others_are_for_who_has_them(room: Path) -> None:
    """A digest is no secret, and what it is the digest of may be one."""
    (room / "layers").mkdir()
    secret = tar(("secret", REG, "", b"theirs"))

    async def have(archive: Path, *own: str) -> list[str]:
        had: list[str] = []
        answer = await job.run(job.Unpack(str(room / "layers"), ".import-x", str(archive), Platform.parse(None), list(own)), print, had.append)
        assert had == answer["layers"]
        return had

    [name] = await have(saved(room / "theirs.tar", secret))
    forged = saved(room / "forged.tar", b"junk", diff_id=digest_of(secret))
    with pytest.raises(InvalidArgument, match="digest"):
        await have(forged)
    assert await have(forged, name) == await have(saved(room / "same.tar", secret)) == [name]


def deep(root: Path, depth: int) -> None:
    """Directories in directories."""
    at = os.open(root, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


async def test_deep_trees_are_refused(room: Path) -> None:
    """By their names, and by links that lead down."""
    (room / "layers").mkdir()
    down: list[Entry] = [("/".join(["d"] * count), DIR, "", b"") for count in range(1, 250)]
    links: list[Entry] = [(f"l{count}", SYM, f"l{count - 1}/{'d/' * 200}" if count else "d/" * 200, b"") for count in range(3)]
    for entries in ([*down, ("d/" * 1500, DIR, "", b"")], [*down, *links, ("l2/x", REG, "", b"")]):
        with pytest.raises(InvalidArgument, match="deep"):
            await job.run(job.Unpack(str(room / "layers"), ".import-x", str(saved(room / "deep.tar", tar(*entries))), Platform.parse(None)), print)
        assert list((room / "layers").iterdir()) == []


def test_what_is_left_goes_however_deep_it_is(tmp_path: Path) -> None:
    places = Places(tmp_path)
    library = Library(places, Catalog(places))
    for left in (".import-x", "oci-x"):
        (places.layers / left).mkdir(parents=True)
        deep(places.layers / left, 1500)
    library.open()
    assert list(places.layers.iterdir()) == []


def test_a_volumes_deep_tree_can_be_removed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    deep(tmp_path / "d", 1500)
    with VolumeFiles(tmp_path) as files:
        files.remove("d")
    assert list(tmp_path.iterdir()) == []


def test_huge_sizes_are_no_negative_ones(room: Path) -> None:
    header = bytearray(tarfile.TarInfo("f").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + struct.pack(">q", -5).rjust(11, b"\xff")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(InvalidArgument):
        unpack(room, bytes(header) + bytes(2048))


class Answers:
    """A registry on loopback that answers each path as it is told: with a status, a body and headers."""

    def __init__(self, answer: Callable[[http.server.BaseHTTPRequestHandler], tuple[int, bytes, dict[str, str]]]) -> None:
        self.asked: list[tuple[str, str | None]] = []
        """Path and authorization of each request."""
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_GET(self) -> None:
                asked.append((self.path, self.headers["Authorization"]))
                status, body, headers = answer(self)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Answers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_a_password_is_not_for_whom_a_registry_leads_to() -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    with Answers(lambda _to: (401, b"", challenge)) as other, Answers(lambda to: (307, b"", {"Location": f"http://{other.address}{to.path}"})) as registry:
        source = Registry(Reference.parse(f"{registry.address}/a:b"), Access({}, "reader", "s3cret"), Platform.parse(None), note=print)
        with closing(source), pytest.raises(Unauthenticated):
            source.find()
    assert {who for _, who in (*registry.asked, *other.asked)} == {None}


def test_a_manifest_without_an_end_is_not_read_to_it() -> None:
    long = b'{"layers": [' + b" " * LARGEST
    with Answers(lambda _to: (200, long, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"})) as registry:
        source = Registry(Reference.parse(f"{registry.address}/a:b"), Access(), Platform.parse(None), note=print)
        with closing(source), pytest.raises(InvalidArgument, match="longer than 8 MiB"):
            source.find()


def _given(files: dict[str, bytes]) -> Callable[[http.server.BaseHTTPRequestHandler], tuple[int, bytes, dict[str, str]]]:
    """A registry's answers for the image of an archive."""

    def answer(to: http.server.BaseHTTPRequestHandler) -> tuple[int, bytes, dict[str, str]]:
        if "/manifests/" in to.path:
            return 200, files["manifest"], {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        body = files.get("blobs/" + to.path.rpartition("/")[2].replace(":", "/"))
        return (404, b"", {}) if body is None else (200, body, {})

    return answer


def _changed(files: dict[str, bytes], of: str) -> None:
    digest = json.loads(files["manifest"])["config"]["digest"] if of == "config" else digest_of(files[of])
    name = "blobs/" + digest.replace(":", "/")
    files[name] = b"x" * len(files[name])


WRONG: dict[str, Callable[[dict[str, bytes]], None]] = {
    "a page for a manifest": lambda files: files.update(manifest=b"<html>"),
    "another configuration": lambda files: _changed(files, "config"),
    "another layer": lambda files: _changed(files, "layer"),
    "half a layer": lambda files: files.update(half=b"yes"),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("known", [False, True])
async def test_what_a_mirror_gives_wrong_is_had_from_the_registry(room: Path, what: str, known: bool) -> None:
    files: dict[str, bytes] = {}
    path = archive(room, files.update)
    theirs = dict(files)
    WRONG[what](theirs)
    (room / "layers").mkdir()
    if known:
        await job.run(job.Unpack(str(room / "layers"), ".import-x", str(path), Platform.parse(None)), print)
    give = _given(theirs)

    def answer(to: http.server.BaseHTTPRequestHandler) -> tuple[int, bytes, dict[str, str]]:
        status, body, headers = give(to)
        if body == files["layer"] and "half" in theirs:
            return status, body[:20], {"Content-Length": str(len(body)), "Connection": "close"}
        return status, body, headers

    with Answers(_given(files)) as registry, Answers(answer) as mirror:
        reference = Reference.parse(f"{registry.address}/a:b")
        work = job.Pull(str(room / "layers"), ".import-x", reference, Platform.parse(None), {reference.registry: [f"http://{mirror.address}"]})
        done = await job.run(work, print)
        assert mirror.asked
    assert (room / "layers" / done["layers"][0] / "f").read_bytes() == b"x"
