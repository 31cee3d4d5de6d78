"""Templates of images in registries that want a password, built by E2B's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from e2b import E2B, BuildException

from corral.images import Catalog
from corral.places import Places
from harness import oci
from harness.oci import Layout, Registry
from harness.server import Server

pytestmark = pytest.mark.skipif(bool(oci.MISSING), reason=f"{oci.MISSING} are not installed")


@pytest.fixture
def ref(server: Server, shared: Places, tmp_path: Path) -> Iterator[str]:
    """What `base` has, where only `reader` may read it."""
    layout = Layout(tmp_path / "layout")
    layout.layer(lambda root: oci.program("cp", "-a", f"{Catalog(shared).find('base').spec.layers[0]}/.", root) and None)
    layout.configure("--config.user=root")
    closed = Registry(tmp_path / "closed", closed=True)
    yield closed.push(layout, "private:1", "--dest-creds=reader:s3cret")
    closed.close()


def test_a_password_is_used_and_kept_nowhere(server: Server, ref: str) -> None:
    client = E2B(api_key="e2b_" + server.key.removeprefix("ck_"), api_url=server.url, sandbox_url=server.url, request_timeout=60)
    with pytest.raises(BuildException, match="wants to know who asks"):
        client.Template.build(client.Template().from_image(ref, username="reader", password="guess").run_cmd("true"), "e2b-private")
    client.Template.build(client.Template().from_image(ref, username="reader", password="s3cret").run_cmd("id -un > /tmp/who; mv /tmp/who who"), "e2b-private")
    with client.Sandbox.create("e2b-private") as box:
        assert box.commands.run("cat who; pwd").stdout == "user\n/home/user\n"
    kept = [path for path in (*server.home.glob("corral.db*"), server.log, *(server.home / "pulled").glob("*")) if b"s3cret" in path.read_bytes()]
    assert kept == []
