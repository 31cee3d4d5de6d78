"""Files over HTTP: bytes in and out, parts of them, trees, changes; and everything a path can be that it must not be."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from harness.api import Api, data, raw
from harness.server import Server


@pytest.fixture(scope="module")
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture(scope="module")
def box(api: Api) -> Iterator[str]:
    box = api.create(name=f"files-{uuid.uuid4().hex[:8]}", workdir="/root")
    yield f"/v1/sandboxes/{box['id']}"
    api.delete(box["id"])


@pytest.fixture
def place(api: Api, box: str) -> Iterator[str]:
    """A directory of this test."""
    path = f"/root/{uuid.uuid4().hex[:8]}"
    api.ok("POST", f"{box}/files/mkdir", status=204, json={"path": path})
    yield path
    api.ok("POST", f"{box}/files/remove", status=204, json={"path": path, "recursive": True})


def put(api: Api, box: str, path: str, content: Any, **query: Any) -> dict[str, Any]:
    return api.ok("PUT", f"{box}/files", params={"path": path, **query}, content=content)


def read(api: Api, box: str, path: str, **headers: str) -> bytes:
    answer = api.request("GET", f"{box}/files", params={"path": path}, headers=headers)
    assert answer.status_code in (200, 206), answer.text
    return answer.content


def names(api: Api, box: str, path: str) -> list[str]:
    return [entry["name"] for entry in api.ok("POST", f"{box}/files/list", json={"path": path})["entries"]]


def test_bytes_come_back_as_they_were(api: Api, box: str, place: str) -> None:
    blob = bytes(range(256)) * 20_000
    entry = put(api, box, f"{place}/a/b", blob, mode=0o640)
    assert (entry["size"], entry["mode"], entry["type"]) == (len(blob), 0o640, "file")
    answer = api.request("GET", f"{box}/files", params={"path": f"{place}/a/b"})
    assert answer.content == blob
    assert answer.headers["content-length"] == str(len(blob))
    assert put(api, box, f"{place}/empty", b"")["size"] == 0
    assert read(api, box, f"{place}/empty") == b""


def test_a_body_of_unknown_length_is_streamed(api: Api, box: str, place: str) -> None:
    pieces = [bytes([number]) * 100_000 for number in range(50)]
    assert put(api, box, f"{place}/f", iter(pieces))["size"] == 5_000_000
    assert hashlib.sha256(read(api, box, f"{place}/f")).digest() == hashlib.sha256(b"".join(pieces)).digest()


@pytest.mark.parametrize(
    ("header", "part", "which"),
    [
        ("bytes=0-3", b"0123", "0-3"),
        ("bytes=4-", b"456789", "4-9"),
        ("bytes=-3", b"789", "7-9"),
        ("bytes=8-100", b"89", "8-9"),
        ("bytes=-100", b"0123456789", "0-9"),
    ],
)
def test_a_part_of_a_file(api: Api, box: str, place: str, header: str, part: bytes, which: str) -> None:
    put(api, box, f"{place}/f", b"0123456789")
    answer = api.request("GET", f"{box}/files", params={"path": f"{place}/f"}, headers={"Range": header})
    assert (answer.status_code, answer.content, answer.headers["content-range"]) == (206, part, f"bytes {which}/10")


def test_a_part_behind_the_end(api: Api, box: str, place: str) -> None:
    put(api, box, f"{place}/f", b"0123456789")
    answer = api.request("GET", f"{box}/files", params={"path": f"{place}/f"}, headers={"Range": "bytes=10-"})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")
    assert (answer.json()["error"]["code"], answer.json()["error"]["details"]["size"]) == ("range_not_satisfiable", 10)
    assert read(api, box, f"{place}/f", Range="bytes=1-2,5-6") == b"0123456789"


def test_files_without_a_size_are_read_too(api: Api, box: str) -> None:
    assert read(api, box, "/proc/meminfo").startswith(b"MemTotal:")


def test_ways_of_writing(api: Api, box: str, place: str) -> None:
    path = f"{place}/f"
    put(api, box, path, b"a", exclusive="true")
    api.refused("file_exists", "PUT", f"{box}/files", params={"path": path, "exclusive": "true"}, content=b"b")
    assert put(api, box, path, b"c", append="true")["size"] == 2
    api.refused("file_not_found", "PUT", f"{box}/files", params={"path": f"{place}/none/f", "parents": "false"}, content=b"x")
    assert read(api, box, path) == b"ac"
    api.refused("invalid_argument", "PUT", f"{box}/files", params={"path": path, "mode": 0o10000}, content=b"")
    api.refused("invalid_argument", "PUT", f"{box}/files", params={"path": path, "mdoe": 1}, content=b"")


@pytest.mark.parametrize("length", [b"Content-Length: 1000000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_body_that_is_cut_off_leaves_nothing(api: Api, box: str, place: str, length: bytes, before: bytes | None) -> None:
    if before is not None:
        put(api, box, f"{place}/f", before)
    chunk = b"x" * 70_000 if b"Length" in length else b"11170\r\n" + b"x" * 70_000 + b"\r\n"
    head = f"PUT {box}/files?path={place}/f HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\n".encode() + length
    raw(api.server, head + b"\r\n\r\n" + chunk)
    expected = [] if before is None else ["f"]
    patience = time.monotonic() + 30
    # Our hanging up reaches the sandbox on a way of its own.
    while (found := names(api, box, place)) != expected:
        assert time.monotonic() < patience, found
    if before is not None:
        assert read(api, box, f"{place}/f") == before


def test_everything_else_about_files(api: Api, box: str, place: str) -> None:
    def do(word: str, **fields: Any) -> Any:
        return api.ok("POST", f"{box}/files/{word}", status=200 if word in ("stat", "exists", "list", "glob") else 204, json=fields)

    put(api, box, f"{place}/d/f", b"1")
    do("copy", source=f"{place}/d", target=f"{place}/e")
    do("move", source=f"{place}/e/f", target=f"{place}/e/g")
    do("symlink", target="g", path=f"{place}/e/link")
    do("chmod", path=f"{place}/e/g", mode=0o400)
    do("chown", path=f"{place}/e/g", user="1:2")
    assert (do("stat", path=f"{place}/e/link")["type"], do("stat", path=f"{place}/e/link")["target"]) == ("symlink", "g")
    entry = do("stat", path=f"{place}/e/g")
    assert (entry["mode"], entry["uid"], entry["gid"]) == (0o400, 1, 2)
    assert do("glob", pattern=f"{place}/**/[fg]")["paths"] == [f"{place}/d/f", f"{place}/e/g"]
    page = do("list", path=place, depth=2, limit=3)
    assert (len(page["entries"]), page["more"]) == (3, True)
    rest = do("list", path=place, depth=2, after=page["entries"][-1]["path"])
    assert [entry["path"].removeprefix(place) for entry in page["entries"] + rest["entries"]] == ["/d", "/d/f", "/e", "/e/g", "/e/link"]
    assert do("exists", path=f"{place}/none") == {"exists": False}
    api.refused("conflict", "POST", f"{box}/files/remove", json={"path": f"{place}/e"})
    do("remove", path=f"{place}/e", recursive=True)
    do("remove", path=f"{place}/e", missing_ok=True)
    assert names(api, box, place) == ["d"]


def test_names_that_are_not_utf8_go_as_base64(api: Api, box: str, place: str) -> None:
    name = base64.b64encode(place.encode() + b"/\xff\xfe").decode()
    entry = api.ok("PUT", f"{box}/files", params={"path_b64": name}, content=b"odd")
    assert entry["path_b64"] == name
    (listed,) = api.ok("POST", f"{box}/files/list", json={"path": place})["entries"]
    assert listed["path_b64"] == name
    assert api.request("GET", f"{box}/files", params={"path_b64": name}).content == b"odd"
    for odd in ("%%", "ä"):
        api.refused("invalid_argument", "GET", f"{box}/files", params={"path_b64": odd})
    api.refused("invalid_argument", "GET", f"{box}/files", params={"path": "/x", "path_b64": name})


def test_a_list_goes_on_behind_a_name_that_is_not_utf8(api: Api, box: str, place: str) -> None:
    paths = [base64.b64encode(place.encode() + name).decode() for name in (b"/\xfe1", b"/\xfe2", b"/\xff")]
    for path in paths:
        api.ok("PUT", f"{box}/files", params={"path_b64": path}, content=b"")
    seen, cursor = list[str](), dict[str, str]()
    for _ in paths:
        page = api.ok("POST", f"{box}/files/list", json={"path": place, "limit": 1, **cursor})
        seen += [entry["path_b64"] for entry in page["entries"]]
        cursor = {"after_b64": seen[-1]}
    assert (seen, page["more"]) == (paths, False)
    api.refused("invalid_argument", "POST", f"{box}/files/list", json={"path": place, "after": "/x", **cursor})


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("", "invalid_argument"),
        ("/nul\0", "invalid_argument"),
        ("/" + "x" * 5000, "invalid_argument"),
        ("/" + "x" * 300, "invalid_argument"),
        ("/loop/x", "invalid_argument"),
        ("/nonesuch", "file_not_found"),
        ("../../../nonesuch", "file_not_found"),
        ("/etc", "is_a_directory"),
        ("/etc/hostname/x", "not_a_directory"),
        ("/dev/zero", "invalid_argument"),
    ],
)
def test_a_path_that_can_not_be_read(api: Api, box: str, path: str, code: str) -> None:
    if path.startswith("/loop"):
        api.run(box.rsplit("/", maxsplit=1)[-1], "ln -sf /loop /loop")
    error = api.refused(code, "GET", f"{box}/files", params={"path": path})
    assert len(error["message"]) < 500


@pytest.mark.parametrize(
    ("path", "code"), [("/proc/x", "access_denied"), ("/sys/x", "access_denied"), ("/etc", "is_a_directory"), ("/etc/hostname/x", "not_a_directory")]
)
def test_a_path_that_can_not_be_written(api: Api, box: str, path: str, code: str) -> None:
    error = api.refused(code, "PUT", f"{box}/files", params={"path": path, "parents": "false"}, content=b"x" * 3_000_000)
    assert error["message"]


def test_paths_are_relative_to_the_workdir(api: Api, box: str, place: str) -> None:
    put(api, box, f"{place}/f", b"here")
    assert read(api, box, f"{place.removeprefix('/root/')}/f") == b"here"


def test_a_tree_goes_out_and_in(api: Api, box: str, place: str) -> None:
    for name in ("a", "b/c"):
        put(api, box, f"{place}/from/{name}", name.encode())
    answer = api.request("GET", f"{box}/tree", params={"path": f"{place}/from"})
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as tree:
        assert {member.name.removeprefix("./") for member in tree if member.isfile()} == {"a", "b/c"}
    done = api.ok("PUT", f"{box}/tree", params={"path": f"{place}/to/here"}, content=answer.content)
    assert done["bytes"] == 4
    assert read(api, box, f"{place}/to/here/b/c") == b"b/c"
    api.refused("file_not_found", "GET", f"{box}/tree", params={"path": f"{place}/none"})


def test_a_tree_does_not_leave_its_place(api: Api, box: str, place: str) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tree:
        escape = tarfile.TarInfo("../escaped")
        escape.size = 1
        tree.addfile(escape, io.BytesIO(b"x"))
    answer = api.request("PUT", f"{box}/tree", params={"path": f"{place}/in"}, content=packed.getvalue())
    assert answer.status_code == 400, answer.text
    assert "escaped" not in names(api, box, place)


def about(change: dict[str, Any], path: str) -> bool:
    """A file that is written whole appears by a rename."""
    return path in (change["path"], change.get("to"))


def test_changes_are_seen_and_resumed(api: Api, box: str, place: str) -> None:
    with api.events("GET", f"{box}/files/watch", params={"path": place, "recursive": "true"}) as events:
        put(api, box, f"{place}/one", b"1")
        seen = []
        while not any(about(change, f"{place}/one") for change in seen):
            event = next(events)
            seen.append(data(event))
            last = event.id
    put(api, box, f"{place}/two", b"2")
    with api.events("GET", f"{box}/files/watch", params={"path": place, "recursive": "true"}, headers={"Last-Event-ID": last}) as events:
        while not about(change := data(next(events)), f"{place}/two"):
            assert change["type"] != "overflow"
    with api.events("GET", f"{box}/files/watch", params={"path": place, "recursive": "true"}, headers={"Last-Event-ID": "7"}) as events:
        assert data(next(events))["type"] == "overflow"
    api.refused("file_not_found", "GET", f"{box}/files/watch", params={"path": f"{place}/none"})
