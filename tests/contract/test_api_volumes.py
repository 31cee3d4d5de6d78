"""Volumes over HTTP, on the real engine: shared, limited, read-only where asked, there when everything else has gone."""

from __future__ import annotations

import os
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


def test_its_files_need_no_sandbox(api: Api, server: Server, volume: str) -> None:
    place = f"/v1/volumes/{volume}/files"

    def put(path: str, content: bytes, **how: Any) -> dict[str, Any]:
        return api.ok("PUT", place, params={"path": path, **how}, content=content)

    assert put("/d/e/file", b"0123456789", mode=0o640, user="1000:1001")["mode"] == 0o640
    assert api.request("GET", place, params={"path": "d/e/file"}).content == b"0123456789"
    part = api.request("GET", place, params={"path": "/d/e/file"}, headers={"Range": "bytes=-3"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"789", "bytes 7-9/10")
    # No sandbox was made for it, and one that has it sees the same.
    assert api.ok("GET", f"/v1/volumes/{volume}")["sandboxes"] == []
    box = api.create(volumes=at(volume))["id"]
    assert api.run(box, "cd /data/d/e; cat file; stat -c ' %a %u %g' file; stat -c %a /data/d")[0] == b"0123456789 640 1000 1001\n777\n"
    api.run(box, "cd /data; echo inside > d/e/file; ln -s / out; ln -s d/e/file link; printf x > $(printf 'odd\\377')")
    assert api.request("GET", place, params={"path": "/d/e/file"}).content == b"inside\n"
    assert put("/d/e/file", b"outside\n")["uid"] == 1000
    assert api.run(box, "cat /data/d/e/file")[0] == b"outside\n"
    listed = api.ok("POST", f"{place}/list", json={"path": "/", "depth": 3})
    assert [(one["path"], one["type"], one["target"]) for one in listed["entries"]] == [
        ("/d", "directory", None),
        ("/d/e", "directory", None),
        ("/d/e/file", "file", None),
        ("/link", "symlink", "d/e/file"),
        ("/odd\ufffd", "file", None),
        ("/out", "symlink", "/"),
    ]
    odd = next(one for one in listed["entries"] if one["path"] == "/odd\ufffd")
    assert api.request("GET", place, params={"path_b64": odd["path_b64"]}).content == b"x"
    page = api.ok("POST", f"{place}/list", json={"path": "/", "depth": 3, "limit": 2})
    assert (len(page["entries"]), page["more"]) == (2, True)
    rest = api.ok("POST", f"{place}/list", json={"path": "/", "depth": 3, "after": page["entries"][-1]["path"]})
    assert [one["path"] for one in page["entries"] + rest["entries"]] == [one["path"] for one in listed["entries"]]
    # No link leads anywhere, nothing but files is read.
    for path in ("/out/etc/passwd", "/link", "/../../etc/passwd", "/nothing"):
        api.refused("file_not_found", "GET", place, params={"path": path})
    api.refused("not_a_directory", "PUT", place, params={"path": "/out/tmp/x"}, content=b"x")
    api.refused("is_a_directory", "GET", place, params={"path": "/d"})
    api.refused("not_a_directory", "POST", f"{place}/list", json={"path": "/d/e/file"})
    api.refused("file_exists", "PUT", place, params={"path": "/d/e/file", "exclusive": True}, content=b"x")
    api.refused("invalid_argument", "PUT", place, params={"path": "/x", "user": "root"}, content=b"x")
    api.refused("invalid_argument", "PUT", place, params={"path": "/x", "append": True}, content=b"x")
    assert api.request("GET", place, params={"path": "/d/e/file"}, headers={"Range": "bytes=100-"}).status_code == 416
    api.ok("POST", f"{place}/mkdir", status=204, json={"path": "/made/deep", "mode": 0o700, "user": "7"})
    assert api.ok("POST", f"{place}/stat", json={"path": "/made/deep"})["uid"] == 7
    api.ok("POST", f"{place}/symlink", status=204, json={"path": "/made/link", "target": "../d/e/file"})
    assert api.run(box, "cat /data/made/link; stat -c %a /data/made/deep")[0] == b"outside\n700\n"
    api.refused("conflict", "POST", f"{place}/remove", json={"path": "/made"})
    for path in ("/", "/made/.."):
        api.refused("invalid_argument", "POST", f"{place}/remove", json={"path": path, "recursive": True})
    api.ok("POST", f"{place}/remove", status=204, json={"path": "/made", "recursive": True})
    api.ok("POST", f"{place}/remove", status=204, json={"path": "/made", "missing_ok": True})
    api.refused("file_not_found", "POST", f"{place}/remove", json={"path": "/made"})
    for path in ("/made", "/d/e/file/below"):
        assert api.ok("POST", f"{place}/exists", json={"path": path}) == {"exists": False}
    assert api.ok("POST", f"{place}/exists", json={"path": "/link"}) == {"exists": True}
    # What does not fit leaves nothing.
    api.refused("disk_full", "PUT", place, params={"path": "/big"}, content=bytes(80 << 20))
    assert api.run(box, "ls -A /data | grep -e big -e new; echo fits > /data/small; cat /data/small")[0] == b"fits\n"
    reader = Api(server, api.ok("POST", "/v1/keys", status=201, json={"name": "r", "role": "reader"})["value"])
    assert reader.request("GET", place, params={"path": "/d/e/file"}).content == b"outside\n"
    reader.refused("forbidden", "PUT", place, params={"path": "/x"}, content=b"x")
    reader.refused("forbidden", "POST", f"{place}/remove", json={"path": "/d", "recursive": True})
    reader.close()
    api.delete(box)


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
        other.refused("not_found", "GET", f"/v1/volumes/{ref}/files", params={"path": "/"})
        other.refused("not_found", "PUT", f"/v1/volumes/{ref}/files", params={"path": "/x"}, content=b"x")
        other.refused("not_found", "POST", f"/v1/volumes/{ref}/files/list", json={"path": "/"})
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
    (tmp_path / "tree" / "link").symlink_to("sub/leaf")
    corral("volume", "cp", str(tmp_path / "tree"), f"{name}:tree")
    assert "/tree/sub/leaf" in corral("volume", "files", f"{name}:tree", "--depth", "2")
    for _ in range(2):
        corral("volume", "cp", str(tmp_path / "tree"), f"{name}:/")
    assert corral("volume", "cp", f"{name}:/sub/leaf", "-") == "leaf"
    # A link that lies here already leads nothing outside.
    (tmp_path / "back").mkdir()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "back" / "sub").symlink_to(tmp_path)
    for _ in range(2):
        corral("volume", "cp", f"{name}:tree", str(tmp_path / "back"))
        assert (tmp_path / "back" / "sub" / "leaf").read_text() == "leaf"
        assert os.readlink(tmp_path / "back" / "link") == "sub/leaf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "kept", "tree"]
    files = Volume.get(name).files
    files.write("d/text", "outside")
    assert (files.read_text("/d/text"), files.read("/d/text", offset=3, length=2)) == ("outside", b"si")
    files.upload(tmp_path / "kept", "d/kept")
    files.download("d/kept", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "kept"
    files.mkdir("d/sub")
    files.remove("d/kept")
    assert [entry.path for entry in files.list("d")] == ["/d/sub", "/d/text"]
    assert not files.exists("d/kept")
    assert [box.id for box in Sandbox.list() if box.info.volumes] == []
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
