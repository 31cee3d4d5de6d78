"""What builds leave behind: no secrets, nothing half made, and no more than is wanted."""

from __future__ import annotations

import gzip
import threading
import uuid
from pathlib import Path

import pytest

from corral import Client, Image, Sandbox, Secret
from corral.errors import Conflict, ImageNotFound
from corral.schema.image import BuildLog
from harness.server import Server


@pytest.fixture
def word(server: Server) -> str:
    return uuid.uuid4().hex


def test_secrets_are_in_no_layer(word: str, tmp_path: Path) -> None:
    """Not the variable's, not the file's: neither on a disk that is kept nor in the configuration."""
    name, value = f"S_{word[:12]}", f"secret-{word}"
    (tmp_path / "Dockerfile").write_text(f"""\
FROM corral/tiny
RUN --mount=type=secret,id={name},target=/run/token grep -c secret- /run/token > /seen
RUN --mount=type=secret,id={name},env=TOKEN test -n "$TOKEN" && echo more >> /seen
""")
    with Client() as client:
        client.secrets.create(name, value)
        for number, image in enumerate(
            (Image.named("tiny").run(f"echo ${name} | wc -c > /seen", secrets=[Secret.named(name)]), Image.from_dockerfile(tmp_path / "Dockerfile"))
        ):
            built = image.build()
            archive = tmp_path / f"{number}.tar"
            client.images.export(built.id, archive)
            raw = archive.read_bytes()
            plain = b"".join(gzip.decompress(blob) for blob in _blobs(archive) if blob.startswith(b"\x1f\x8b"))
            assert b"seen" in plain
            assert value.encode() not in raw + plain
            with client.sandboxes.create(built.id) as box:
                assert box.run(f"cat /seen; echo ${name}; ls /run/token").stdout == (f"{len(value) + 1}\n\n" if number == 0 else "1\nmore\n\n")


def _blobs(archive: Path) -> list[bytes]:
    import tarfile

    with tarfile.open(archive) as tar:
        return [content.read() for info in tar if info.isreg() and (content := tar.extractfile(info)) is not None]


def test_a_server_that_is_killed_in_a_build_goes_on_from_the_step_before(server: Server, word: str) -> None:
    image = Image.named("tiny").run(f"echo {word} > /one").run(f"echo half > /two; test -e /go || sleep 2; echo {word} > /two")
    lines: list[BuildLog] = []
    begun = threading.Event()

    def note(line: BuildLog) -> None:
        lines.append(line)
        if line.stream == "step" and line.step == 2 and not begun.is_set():
            begun.set()

    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(image.build(on_log=note).id))
    thread.start()
    assert begun.wait(60)
    server.kill()
    server.start()
    thread.join()
    assert [line.step for line in lines if line.stream == "step"] == [1, 2, 2]
    with Sandbox.create(found[0]) as box:
        assert box.run("cat /one /two").stdout == f"{word}\n{word}\n"
    # The sandbox of the build that was killed is gone too.
    with Client() as client:
        assert [box.id for box in client.sandboxes.list() if "corral.build" in box.info.tags] == []


def test_pruning_forgets_what_is_not_in_use(word: str) -> None:
    with Client() as client:
        kept = Image.named("tiny").run(f"echo {word} > /kept").run("echo last > /last").build(template=f"t-{word[:8]}")
        loose = Image.named("tiny").run(f"echo {word} > /loose").build()
        before = client.images.usage()
        assert before.images >= 2
        assert before.layers >= 1
        with client.sandboxes.create(kept.id) as box:
            done = client.images.prune(images=True)
            after = client.images.usage()
            assert done.layers == before.layers
            assert (after.layers, after.layers_size, after.uploads) == (0, 0, 0)
            assert after.images == before.images - done.images
            assert client.images.get(kept.id).id == kept.id
            with pytest.raises(ImageNotFound):
                client.images.get(loose.id)
            assert box.run("cat /kept /last").stdout == f"{word}\nlast\n"
        with client.sandboxes.create(kept.id) as box:
            assert box.run("cat /kept").stdout == f"{word}\n"
        with pytest.raises(Conflict):
            client.images.delete(kept.id)


def test_pruning_by_age_and_by_size_takes_the_longest_unused_first(word: str) -> None:
    with Client() as client:
        client.images.prune(images=True)
        old, new = (Image.named("tiny").run(f"head -c 3000000 /dev/urandom > /{which}-{word}") for which in ("old", "new"))
        for image in (old, new):
            # What comes after it is the image; itself it is the result of a step.
            image.run("true").build()
        layers = client.images.usage()
        assert layers.layers == 2
        assert client.images.prune(older_than=3600).layers == 0
        assert client.images.prune(keep_size=layers.layers_size).layers == 0
        assert client.images.prune(keep_size=layers.layers_size - 1).layers == 1
        assert (steps(new.run("echo")), steps(old.run("echo"))) == (1, 2)
        assert client.images.prune(older_than=0).layers == 2
        assert client.images.usage().layers == 0


def steps(image: Image) -> int:
    """How many a build does."""
    lines: list[BuildLog] = []
    image.build(on_log=lines.append)
    return sum(line.stream == "step" for line in lines)
