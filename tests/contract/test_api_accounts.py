"""Keys, roles and projects over HTTP: what is not yours does not exist."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import uuid
from collections.abc import Callable, Iterator

import pytest

from harness.api import Api, raw
from harness.server import Server

Make = Callable[..., Api]


@pytest.fixture
def project(admin: Api) -> Iterator[str]:
    name = f"p-{uuid.uuid4().hex[:8]}"
    admin.ok("POST", "/v1/projects", status=201, json={"name": name})
    yield name
    for box in admin.ok("GET", "/v1/sandboxes", headers={"Corral-Project": name})["sandboxes"]:
        admin.ok("DELETE", f"/v1/sandboxes/{box['id']}", headers={"Corral-Project": name})
    admin.ok("DELETE", f"/v1/projects/{name}", status=204)


@pytest.fixture
def holder(admin: Api, project: str, server: Server) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(role: str = "member", of: str = project) -> Api:
            key = admin.ok("POST", "/v1/keys", status=201, json={"name": role, "project": of, "role": role})
            assert key["value"].startswith("ck_")
            return stack.enter_context(contextlib.closing(Api(server, key["value"])))

        yield make


EVERYTHING = [
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/extend"),
    ("POST", "/stop"),
    ("POST", "/start"),
    ("POST", "/processes"),
    ("GET", "/processes"),
    ("GET", "/processes/pr-aaaaaaaaaaaaaaaa/output"),
    ("GET", "/files?path=/"),
    ("PUT", "/files?path=/x"),
    ("POST", "/files/stat"),
    ("GET", "/tree?path=/"),
    ("GET", "/egress"),
    ("PUT", "/egress"),
    ("GET", "/egress/flows"),
    ("GET", "/egress/denials"),
    ("POST", "/egress/learn"),
    ("GET", "/metrics"),
    ("GET", "/logs"),
]


def test_another_projects_sandbox_does_not_exist(admin: Api, holder: Make) -> None:
    member, stranger = holder(), holder(of="default")
    box = member.create(name="theirs")
    bodies: dict[tuple[str, str], object] = {
        ("POST", "/extend"): {"seconds": 1},
        ("POST", "/processes"): {"command": "true"},
        ("POST", "/files/stat"): {"path": "/"},
    }
    for other in (stranger, admin):
        for method, rest in EVERYTHING:
            body = bodies.get((method, rest), {} if method in ("POST", "PATCH") else None)
            how = {"json": body} if body is not None else {}
            for name in (box["id"], "theirs"):
                other.refused("not_found", method, f"/v1/sandboxes/{name}{rest}", status=404, **how)
        other.refused("not_found", "POST", "/v1/sandboxes/delete", json={"sandboxes": [box["id"]]})
        assert all(one["id"] != box["id"] for one in other.ok("GET", "/v1/sandboxes")["sandboxes"])
        assert all(one["sandbox"] != box["id"] for one in other.ok("GET", "/v1/events", params={"sandbox": box["id"]})["events"])
    assert member.ok("GET", f"/v1/sandboxes/{box['id']}")["state"] == "running"


def test_an_admin_can_enter_any_project_and_others_only_their_own(admin: Api, holder: Make, project: str) -> None:
    member = holder()
    box = member.create()
    entered = {"Corral-Project": project}
    assert admin.ok("GET", f"/v1/sandboxes/{box['id']}", headers=entered) == box
    assert member.ok("GET", f"/v1/sandboxes/{box['id']}", headers=entered) == box
    member.refused("not_found", "GET", "/v1/sandboxes", headers={"Corral-Project": "default"})
    admin.refused("not_found", "GET", "/v1/sandboxes", headers={"Corral-Project": "none"})


def test_a_reader_looks_and_changes_nothing(holder: Make) -> None:
    member, reader = holder(), holder("reader")
    box = member.create()
    path = f"/v1/sandboxes/{box['id']}"
    member.run(box["id"], "echo hi > /f")
    assert reader.ok("GET", path) == box
    assert reader.request("GET", f"{path}/files?path=/f").content == b"hi\n"
    assert reader.ok("POST", f"{path}/files/exists", json={"path": "/f"}) == {"exists": True}
    assert reader.ok("GET", f"{path}/metrics")["samples"]
    for method, rest, body in (
        ("POST", "/processes", {"command": "true"}),
        ("DELETE", "", None),
        ("PATCH", "", {}),
        ("POST", "/stop", None),
        ("PUT", "/files?path=/g", None),
        ("POST", "/files/remove", {"path": "/f"}),
    ):
        error = reader.refused("forbidden", method, path + rest, status=403, **({"json": body} if body is not None else {}))
        assert "member" in error["hint"]
    reader.refused("forbidden", "POST", "/v1/sandboxes", json={})


def test_only_an_admin_administers(holder: Make, project: str) -> None:
    for key in (holder(), holder("reader")):
        for method, path, body in (
            ("POST", "/v1/keys", {"name": "k"}),
            ("GET", "/v1/keys", None),
            ("DELETE", "/v1/keys/ke-aaaaaaaaaaaaaaaa", None),
            ("POST", "/v1/projects", {"name": "x"}),
            ("GET", "/v1/projects", None),
            ("DELETE", f"/v1/projects/{project}", None),
        ):
            key.refused("forbidden", method, path, status=403, **({"json": body} if body is not None else {}))
        assert key.ok("GET", f"/v1/projects/{project}")["name"] == project
        key.refused("not_found", "GET", "/v1/projects/default")


def test_a_revoked_key_is_nobody_at_once(admin: Api, holder: Make) -> None:
    member = holder()
    member.ok("GET", "/v1/sandboxes")
    key = next(key for key in admin.ok("GET", "/v1/keys")["keys"][::-1])
    assert "value" not in key
    admin.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
    error = member.refused("unauthenticated", "GET", "/v1/sandboxes", status=401)
    assert error["hint"]
    admin.refused("not_found", "DELETE", f"/v1/keys/{key['id']}")


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer ", "Bearer ck_0000", "Basic abc", "ck_0000", "Bearer " + "x" * 5000, "Bearer \xff"])
@pytest.mark.parametrize("path", ["/v1/sandboxes", "/v1/nonesuch", "/v1/events?follow=true"])
def test_without_a_key_there_is_nothing(server: Server, authorization: str | None, path: str) -> None:
    header = "" if authorization is None else f"Authorization: {authorization}\r\n"
    head, _, body = raw(server, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\r\n".encode("latin-1")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert b"\r\nwww-authenticate: Bearer" in head
    assert json.loads(body)["error"]["code"] == "unauthenticated"


def test_a_key_repeated_with_its_idempotency_key_is_the_same(admin: Api) -> None:
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first = admin.ok("POST", "/v1/keys", status=201, json={"name": "twice"}, headers=headers)
    assert admin.ok("POST", "/v1/keys", status=201, json={"name": "twice"}, headers=headers) == first
    admin.ok("DELETE", f"/v1/keys/{first['id']}", status=204)


def test_the_server_keeps_no_key_but_its_admins_file(server: Server, admin: Api) -> None:
    file = server.home / "keys" / "admin"
    assert file.stat().st_mode & 0o777 == 0o600
    value = admin.ok("POST", "/v1/keys", status=201, json={"name": "seen once"})
    for path in server.home.glob("corral.db*"):
        assert value["value"][3:].encode() not in path.read_bytes()
        assert server.key[3:].encode() not in path.read_bytes()
    admin.ok("DELETE", f"/v1/keys/{value['id']}", status=204)


@pytest.mark.parametrize("body", [{}, {"name": ""}, {"name": "k", "role": "king"}, {"name": "k", "project": "none"}, {"name": "x" * 129}])
def test_a_key_that_can_not_be(admin: Api, body: dict[str, str]) -> None:
    admin.refused("not_found" if body.get("project") else "invalid_argument", "POST", "/v1/keys", json=body)


@pytest.mark.parametrize("body", [{}, {"name": "Bad Name"}, {"name": "p", "max_memory": -1}, {"name": "p", "max_cpu": "much"}])
def test_a_project_that_can_not_be(admin: Api, body: dict[str, str]) -> None:
    admin.refused("invalid_argument", "POST", "/v1/projects", json=body)


def test_a_project_goes_with_what_is_its_own_and_not_while_something_is_kept_in_it(admin: Api, server: Server) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    inside = {"Corral-Project": project}
    digest = hashlib.sha256(b"uploaded").hexdigest()
    admin.ok("POST", "/v1/projects", status=201, json={"name": project})
    box = admin.ok("POST", "/v1/sandboxes", status=201, json={"image": "tiny"}, headers=inside)["id"]
    kept = admin.ok("POST", f"/v1/sandboxes/{box}/snapshots", status=201, json={"name": "kept"}, headers=inside)["id"]
    admin.ok("POST", "/v1/volumes", status=201, json={"name": "kept", "size": 64}, headers=inside)
    admin.ok("PUT", "/v1/templates/mine", json={"image": "tiny"}, headers=inside)
    admin.ok("PUT", f"/v1/images/uploads/{digest}", content=b"uploaded", headers=inside)
    for what, path in (("sandboxes", f"sandboxes/{box}"), ("snapshots", f"snapshots/{kept}"), ("volumes", "volumes/kept")):
        error = admin.refused("conflict", "DELETE", f"/v1/projects/{project}")
        assert error["details"][what] == 1
        admin.ok("DELETE", f"/v1/{path}", headers=inside)
    admin.ok("DELETE", f"/v1/projects/{project}", status=204)
    # A later one of its name begins with nothing, also with the next server.
    server.kill()
    server.start()
    admin.ok("POST", "/v1/projects", status=201, json={"name": project})
    assert [one["name"] for one in admin.ok("GET", "/v1/templates", headers=inside)["templates"] if one["project"] is not None] == []
    assert [one["id"] for one in admin.ok("GET", "/v1/images", headers=inside)["images"] if one["built"]] == []
    usage = admin.ok("GET", "/v1/images/usage", headers=inside)
    assert (usage["images"], usage["layers"], usage["uploads"]) == (0, 0, 0)
    assert admin.ok("GET", "/v1/events", headers=inside)["events"] == []
    assert admin.ok("GET", "/v1/sandboxes", params={"state": "terminated"}, headers=inside)["sandboxes"] == []
    admin.ok("DELETE", f"/v1/projects/{project}", status=204)


def test_what_was_asked_of_a_project_is_not_answered_to_a_later_one_of_its_name(admin: Api) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    inside, made, followed = {"Corral-Project": project, "Idempotency-Key": "the same"}, set[str](), list[str]()
    for _ in range(2):
        admin.ok("POST", "/v1/projects", status=201, json={"name": project})
        made.add(admin.ok("POST", "/v1/volumes", status=201, json={"name": "v", "size": 64}, headers=inside)["id"])
        followed.append(" ".join(event["kind"] for event in admin.ok("GET", "/v1/events", headers=inside)["events"]))
        admin.ok("DELETE", "/v1/volumes/v", headers=inside)
        admin.ok("DELETE", f"/v1/projects/{project}", status=204)
    assert len(made) == 2
    assert followed == ["volume.created"] * 2


def test_builds_end_with_their_project(admin: Api) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    inside = {"Corral-Project": project}
    with socket.create_server(("127.0.0.1", 0)) as registry:
        registry.settimeout(60)
        admin.ok("POST", "/v1/projects", status=201, json={"name": project})
        source = {"kind": "registry", "ref": f"127.0.0.1:{registry.getsockname()[1]}/never:1"}
        wanted = {"definition": {"source": source, "steps": []}, "template": "late"}
        build = admin.ok("POST", "/v1/images/builds", status=202, json=wanted, headers=inside)["id"]
        line, _ = registry.accept()
        with line:
            line.settimeout(60)
            admin.ok("DELETE", f"/v1/projects/{project}", status=204)
            # It asks no more: what comes is the rest of its question, and then the end.
            while line.recv(65_536):
                pass
    admin.ok("POST", "/v1/projects", status=201, json={"name": project})
    admin.refused("not_found", "GET", f"/v1/images/builds/{build}", headers=inside)
    admin.ok("DELETE", f"/v1/projects/{project}", status=204)
