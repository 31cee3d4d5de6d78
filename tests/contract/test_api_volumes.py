"""Volumes over HTTP, on the real engine: shared, limited, read-only where asked, there when everything else has gone."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from corral import Sandbox, Volume
from corral.errors import Conflict, NotFound
from harness.api import Api
from harness.server import Server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture
def volume(api: Api) -> Iterator[str]:
    name = f"v-{uuid.uuid4().hex[:12]}"
    api.ok("POST", "/v1/volumes", status=201, json={"name": name, "size": 64})
    yield name
    api.ok("DELETE", f"/v1/volumes/{name}")


def at(name: str, **how: Any) -> dict[str, Any]:
    return {"/data": {"volume": name, **how}}


def test_a_volume_is_shared_and_outlives_its_sandboxes(api: Api, volume: str) -> None:
    one, two = (api.create(volumes=at(volume))["id"] for _ in range(2))
    api.run(one, "mkdir -p /data/d; echo hello > /data/d/file; ls /data/d")
    assert api.run(two, "cat /data/d/file; echo more >> /data/d/file")[0] == b"hello\n"
    assert api.run(one, "cat /data/d/file")[0] == b"hello\nmore\n"
    assert set(api.ok("GET", f"/v1/volumes/{volume}")["sandboxes"]) == {one, two}
    api.delete(one)
    api.delete(two)
    three = api.create(volumes=at(volume))["id"]
    assert api.run(three, "cat /data/d/file")[0] == b"hello\nmore\n"
    api.delete(three)


def test_read_only_is_read_only_while_others_write(api: Api, volume: str) -> None:
    writer, reader = api.create(volumes=at(volume))["id"], api.create(volumes=at(volume, read_only=True))["id"]
    api.run(writer, "echo 1 > /data/file")
    assert api.run(reader, "cat /data/file; echo 2 > /data/file || rm /data/file || mkdir /data/d || echo refused")[0] == b"1\nrefused\n"
    api.run(writer, "echo 3 > /data/file")
    assert api.run(reader, "cat /data/file")[0] == b"3\n"
    for box in (writer, reader):
        api.delete(box)


def test_its_size_is_a_limit_of_its_own(api: Api, volume: str) -> None:
    box = api.create(volumes=at(volume))["id"]
    out, _, ended = api.run(
        box, "dd if=/dev/zero of=/data/big bs=1M count=100; echo $?; echo fine > /file; cat /file; rm /data/big; echo fits > /data/small; cat /data/small"
    )
    assert out == b"1\nfine\nfits\n"
    assert ended["exit_code"] == 0
    api.delete(box)


def test_it_is_kept_while_a_sandbox_has_it(api: Api, volume: str) -> None:
    box = api.create(volumes=at(volume))["id"]
    error = api.refused("conflict", "DELETE", f"/v1/volumes/{volume}", status=409)
    assert error["details"]["sandboxes"] == [box]
    api.ok("POST", f"/v1/sandboxes/{box}/stop")
    api.refused("conflict", "DELETE", f"/v1/volumes/{volume}")
    api.ok("POST", f"/v1/sandboxes/{box}/start")
    assert api.run(box, "touch /data/x && echo ok")[0] == b"ok\n"
    api.delete(box)


def test_it_is_no_part_of_a_snapshot(api: Api, volume: str) -> None:
    box = api.create(volumes=at(volume))["id"]
    api.run(box, "echo v > /data/file; echo d > /file")
    snapshot = api.ok("POST", f"/v1/sandboxes/{box}/snapshots", status=201, json={})["id"]
    child = api.create(image=snapshot)["id"]
    assert api.run(child, "cat /file; ls /data")[0] == b"d\n"
    for one in (box, child):
        api.delete(one)
    api.ok("DELETE", f"/v1/snapshots/{snapshot}")


def test_it_comes_to_a_running_sandbox_and_goes(api: Api, server: Server, volume: str) -> None:
    one, two = (api.create()["id"] for _ in range(2))
    for box in (one, two):
        shown = api.ok("POST", f"/v1/sandboxes/{box}/volumes", json={"volume": volume, "path": "/mnt/data", "read_only": box == two})
        assert list(shown["volumes"]) == ["/mnt/data"]
    assert api.run(one, "echo 1 > /mnt/data/file && echo fine")[0] == b"fine\n"
    assert api.run(two, "cat /mnt/data/file; echo 2 > /mnt/data/file || echo refused")[0] == b"1\nrefused\n"
    api.refused("conflict", "POST", f"/v1/sandboxes/{one}/volumes", json={"volume": volume, "path": "/mnt/data"})
    api.refused("invalid_argument", "POST", f"/v1/sandboxes/{one}/volumes", json={"volume": volume, "path": "/mnt"})
    api.refused("not_found", "DELETE", f"/v1/sandboxes/{one}/volumes", params={"path": "/mnt"})
    # The next server knows of it too.
    server.kill()
    server.start()
    assert api.ok("DELETE", f"/v1/sandboxes/{one}/volumes", params={"path": "/mnt/data"})["volumes"] == {}
    assert api.run(one, "ls -A /mnt/data; mount | grep -c /mnt/data")[0] == b"0\n"
    assert api.run(two, "cat /mnt/data/file")[0] == b"1\n"
    # And again, to be written by both; what had it before sees the same files.
    api.ok("POST", f"/v1/sandboxes/{one}/volumes", json={"volume": volume, "path": "/mnt/data"})
    assert api.run(one, "echo 3 >> /mnt/data/file; cat /mnt/data/file")[0] == b"1\n3\n"
    assert api.run(two, "cat /mnt/data/file")[0] == b"1\n3\n"
    api.ok("POST", f"/v1/sandboxes/{two}/stop")
    api.ok("DELETE", f"/v1/sandboxes/{two}/volumes", params={"path": "/mnt/data"})
    api.ok("POST", f"/v1/sandboxes/{two}/volumes", json={"volume": volume, "path": "/other"})
    api.ok("POST", f"/v1/sandboxes/{two}/start")
    assert api.run(two, "cat /other/file; ls -A /mnt/data")[0] == b"1\n3\n"
    assert set(api.ok("GET", f"/v1/volumes/{volume}")["sandboxes"]) == {one, two}
    for box in (one, two):
        api.delete(box)


def test_a_part_of_it_is_all_that_one_sees_and_no_link_leads_out_of_it(api: Api, volume: str) -> None:
    whole = api.create(volumes=at(volume))["id"]
    part = api.create(volumes=at(volume, sub_path="runs/7"))["id"]
    api.run(part, "echo mine > /data/file; ls -A /data/..")
    assert api.run(whole, "cat /data/runs/7/file; stat -c %a /data/runs/7")[0] == b"mine\n777\n"
    api.run(whole, "ln -s / /data/root; ln -s runs /data/link; echo x > /data/plain")
    for path in ("root/etc", "link/7", "plain", "missing/dir"):
        body = {"volume": volume, "path": "/part", "read_only": path == "missing/dir", "sub_path": path}
        api.refused("file_not_found", "POST", f"/v1/sandboxes/{part}/volumes", json=body)
    for path in ("/abs", "a/../b", "a/"):
        api.refused("invalid_argument", "POST", f"/v1/sandboxes/{part}/volumes", json={"volume": volume, "path": "/part", "sub_path": path})
    assert api.run(part, "ls /part || echo none")[0] == b"none\n"
    for box in (whole, part):
        api.delete(box)


def test_a_copy_is_what_it_was_at_one_moment(api: Api, volume: str) -> None:
    box = api.create(volumes=at(volume))["id"]
    api.run(box, "echo 1 > /data/file")
    copy = api.ok("POST", "/v1/volumes", status=201, json={"name": f"{volume}-copy", "source": volume})
    assert copy["size"] == 64
    api.run(box, "echo 2 > /data/file")
    other = api.create(volumes=at(copy["name"]))["id"]
    assert api.run(other, "cat /data/file; echo 3 > /data/file")[0] == b"1\n"
    assert api.run(box, "cat /data/file")[0] == b"2\n"
    api.refused("invalid_argument", "POST", "/v1/volumes", json={"name": f"{volume}-2", "source": volume, "size": 100})
    for one in (box, other):
        api.delete(one)
    # One that nobody has, too.
    again = api.ok("POST", "/v1/volumes", status=201, json={"name": f"{volume}-again", "source": copy["id"]})
    other = api.create(volumes=at(again["id"]))["id"]
    assert api.run(other, "cat /data/file")[0] == b"3\n"
    api.delete(other)
    for one in (copy, again):
        api.ok("DELETE", f"/v1/volumes/{one['id']}")


def test_names_and_places_are_checked(api: Api, volume: str) -> None:
    api.refused("conflict", "POST", "/v1/volumes", json={"name": volume})
    api.refused("not_found", "POST", "/v1/sandboxes", json={"image": "tiny", "volumes": at("nothing")})
    for path in ("data", "/", "/data/", "/a/../b", "/proc/x", "/dev"):
        api.refused("invalid_argument", "POST", "/v1/sandboxes", json={"image": "tiny", "volumes": {path: {"volume": volume}}})


def test_another_project_has_none_of_it(api: Api, server: Server, volume: str) -> None:
    mark = uuid.uuid4().hex[:12]
    api.ok("POST", "/v1/projects", status=201, json={"name": f"p-{mark}", "max_disk": 100})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "other", "project": f"p-{mark}"})
    other = Api(server, key["value"])
    id = api.ok("GET", f"/v1/volumes/{volume}")["id"]
    for ref in (volume, id):
        other.refused("not_found", "GET", f"/v1/volumes/{ref}", status=404)
        other.refused("not_found", "DELETE", f"/v1/volumes/{ref}", status=404)
        other.refused("not_found", "POST", "/v1/sandboxes", json={"image": "tiny", "disk": 64, "volumes": at(ref)})
    other.refused("quota_exceeded", "POST", "/v1/volumes", json={"name": "large", "size": 101})
    assert other.ok("GET", "/v1/volumes")["volumes"] == []
    other.close()
    api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
    api.ok("DELETE", f"/v1/projects/p-{mark}", status=204)


def test_from_python_and_the_command_line(server: Server, tmp_path: Path) -> None:
    name = f"v-{uuid.uuid4().hex[:12]}"
    made = Volume.create(name, size=64)
    assert Volume.get(name).id == made.id in [one.id for one in Volume.list()]
    with Sandbox.create("tiny", volumes={"/data": Volume.named(name)}) as box:
        box.files.write("/data/file", "from inside")
        with pytest.raises(Conflict):
            made.delete()
        copy = made.clone(f"{name}-copy")
        box.attach("/copy", Volume.named(copy.name, read_only=True))
        assert box.files.read("/copy/file") == b"from inside"
        box.detach("/copy")
        assert not box.files.exists("/copy/file")
    copy.delete()

    def corral(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "corral", *words], env=server.env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"corral {' '.join(words)}: {done.returncode} {done.stderr}"
        return done.stdout

    assert corral("volume", "cp", f"{name}:file", "-") == "from inside"
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "leaf").write_text("leaf")
    corral("volume", "cp", str(tmp_path / "tree"), f"{name}:tree")
    corral("volume", "cp", f"{name}:tree", str(tmp_path / "back"))
    assert (tmp_path / "back" / "sub" / "leaf").read_text() == "leaf"
    assert name in corral("volume", "ls")
    assert corral("run", "--image", "tiny", "--volume", f"{name}:/data:ro", "--", "cat", "/data/file") == "from inside"
    box = corral("create", "--image", "tiny", "--volume", f"{name}:/data:ro").strip()
    assert corral("exec", box, "--", "cat", "/data/tree/sub/leaf") == "leaf"
    corral("volume", "attach", box, f"{name}:/sub:ro", "--sub-path", "tree/sub")
    assert corral("exec", box, "--", "cat", "/sub/leaf") == "leaf"
    corral("volume", "detach", box, "/sub")
    assert corral("exec", box, "--", "ls", "/sub") == ""
    corral("volume", "clone", name, f"{name}-copy")
    corral("volume", "rm", f"{name}-copy")
    corral("rm", box)
    corral("volume", "rm", name)
    with pytest.raises(NotFound):
        Volume.get(name)
