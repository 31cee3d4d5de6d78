"""The templates `python` and `node`: what ships with Corral beside `base`, made when it is first asked for; and what becomes of images of earlier versions."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from corral import Client, Image, Sandbox, images
from corral.errors import ImageNotFound
from corral.ids import new_id
from corral.images import Catalog, StoredImage
from corral.places import Places
from harness import fetched
from harness.server import Server

pytestmark = pytest.mark.slow


@pytest.fixture
def node(server: Server, shared: Places) -> str:
    """Of a machine that has made it."""
    if all(stored.spec.name != "node" for stored in Catalog(shared).list()):
        fetched.need_index()
    images.ensure(shared, ["node"], on_line=print)
    images.share(Places(server.home), shared, ["node"])
    return "node"


@pytest.mark.timeout(600)
def test_python_is_made_when_it_is_first_asked_for(server: Server) -> None:
    fetched.need_index()
    with Client() as client:
        assert (client.templates.get("python").tags, [one.name for one in client.templates.list() if one.name == "python"]) == ({}, ["python"])
        with client.sandboxes.create("python", memory=512) as box:
            version = box.run("python -m pip --version").check().stdout
            assert int(version.split()[1].partition(".")[0]) >= 25, version
            assert "/opt/venv/" in version
            assert box.run("pip --version && uv --version && which python").check().stdout.splitlines()[-1] == "/opt/venv/bin/python"
            assert box.run("python -m venv v && uv venv -q u && v/bin/python -c 'import sys; print(sys.version_info >= (3, 11))'").check().stdout == "True\n"
            assert box.run("touch /opt/venv/bin/mine && git --version && gcc --version").ok
        made = client.templates.get("python").tags
        assert made.keys() == {"latest"}
        assert client.images.get("python").id == made["latest"]
        with client.sandboxes.create("python:latest") as box:
            assert box.run("uv --version").ok
        with pytest.raises(ImageNotFound):
            client.sandboxes.create("python:3.12")


def test_node_has_a_line_with_long_term_support(node: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM corral/node\nUSER root\nRUN node --version > /version && npm --version && npx --version\n")
    with Sandbox.create(Image.from_dockerfile(tmp_path / "Dockerfile"), memory=512) as box:
        assert int(box.run("cat /version").stdout.lstrip("v").partition(".")[0]) >= 22
    with Sandbox.create(node, memory=512) as box:
        assert box.run("node -e 'console.log(6 * 7, process.version)'").check().stdout.startswith("42 v")
        box.files.write("/home/user/p/package.json", '{"name": "theirs", "version": "1.0.0", "bin": "x.js"}')
        box.files.write("/home/user/p/x.js", "#!/usr/bin/env node\nconsole.log(require('node:os').userInfo().username)")
        assert box.run("npm install -g --offline ./p >&2 && theirs").check().stdout == "user\n"
        assert box.run("test -f /usr/local/include/node/node_api.h && which node npm npx").check().stdout == "".join(
            f"/usr/local/bin/{program}\n" for program in ("node", "npm", "npx")
        )


@pytest.fixture
def earlier(server: Server) -> Iterator[StoredImage]:
    """What an earlier version of Corral called `tiny`."""
    places = Places(server.home)
    catalog = Catalog(places)
    tiny = catalog.find("tiny")
    id = new_id("im")
    shutil.copytree(tiny.spec.layers[0], places.layers / id, symlinks=True)
    stored = replace(tiny, spec=replace(tiny.spec, id=id, name=None, layers=(places.layers / id,)), created=datetime.now(UTC), recipe="tiny-0")
    catalog.add(stored)
    yield stored


def test_an_image_of_an_earlier_version_goes_when_nothing_stands_on_it(earlier: StoredImage) -> None:
    layer, word = earlier.spec.layers[0], uuid.uuid4().hex
    with Client() as client:
        with client.sandboxes.create(earlier.spec.id) as box:
            client.images.prune()
            assert box.run(f"echo {word} > /word && cat /word").stdout == f"{word}\n"
            snapshot = box.snapshot()
        client.images.prune()
        with client.sandboxes.create(snapshot.id) as box:
            assert box.run("cat /word").stdout == f"{word}\n"
        snapshot.delete()
        client.images.prune()
        assert not layer.exists()
        with pytest.raises(ImageNotFound):
            client.sandboxes.create(earlier.spec.id)
        with client.sandboxes.create("tiny") as box:
            assert box.run(["/bin/true"]).ok
