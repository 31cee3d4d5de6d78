"""The server itself: what it says of its state, of what happens, of what it does not understand, and of itself; and that it can be left and come back."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from corral.sdk.sse import Event
from harness.api import Api, data, raw
from harness.server import Server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


def test_health_needs_no_key(server: Server) -> None:
    health, ready = (httpx2.get(f"{server.url}{path}").json() for path in ("/healthz", "/readyz"))
    assert health["ok"]
    assert ready["ok"]
    assert ready["checks"] == {"node": "ok", "store": "ok"}


def test_metrics_count_what_happens(api: Api) -> None:
    def figures() -> dict[str, float]:
        text = httpx2.get(f"{api.server.url}/metrics").text

        def figure(name: str) -> float:
            found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
            return float(found[1]) if found else 0.0

        return {
            "sandboxes": figure('corral_sandboxes{state="running"}') + figure('corral_sandboxes{state="frozen"}'),
            "created": figure('corral_create_seconds_count{phase="total"}'),
            "processes": figure("corral_processes_started_total"),
            "bytes": figure('corral_bytes_total{direction="out",what="output"}'),
            "errors": figure('corral_errors_total{code="not_found"}'),
        }

    before = figures()
    box = api.create()
    api.run(box["id"], "echo hello")
    api.refused("not_found", "GET", "/v1/sandboxes/none")
    after = figures()
    assert {name: after[name] - before[name] for name in after} == {"sandboxes": 1, "created": 1, "processes": 1, "bytes": 6, "errors": 1}
    api.delete(box["id"])
    assert figures()["sandboxes"] == before["sandboxes"]


def test_a_sandbox_tells_what_it_uses(api: Api) -> None:
    box = api.create(memory=256, disk=512)
    (*_, sample) = api.ok("GET", f"/v1/sandboxes/{box['id']}/metrics")["samples"]
    assert (sample["memory_limit"], sample["disk_limit"]) == (256, 512)
    assert 0 < sample["memory"] < 256
    assert isinstance(api.ok("GET", f"/v1/sandboxes/{box['id']}/logs")["lines"], list)
    api.delete(box["id"])


def test_listening_ports_are_told(api: Api) -> None:
    box = api.create()
    with api.events("GET", "/v1/events", params={"sandbox": box["id"], "kind": "port.opened", "follow": True}) as events:
        api.ok("POST", f"/v1/sandboxes/{box['id']}/processes", status=201, json={"command": "nc -l -p 8000"})
        assert data(next(events))["data"] == {"port": 8000, "process": "nc"}
    assert [(one["port"], one["process"]) for one in api.ok("GET", f"/v1/sandboxes/{box['id']}/ports")["ports"]] == [(8000, "nc")]
    api.delete(box["id"])


def test_images_are_listed(api: Api) -> None:
    images = {image["name"]: image for image in api.ok("GET", "/v1/images")["images"]}
    assert {"tiny", "base"} <= images.keys()
    box = api.create(image=images["tiny"]["id"])
    assert box["image"] == images["tiny"]["id"]
    api.delete(box["id"])


def test_events_tell_a_life_in_order_and_resume(api: Api) -> None:
    box = api.create()
    api.run(box["id"], "exit 3")
    api.ok("POST", f"/v1/sandboxes/{box['id']}/stop")
    api.ok("POST", f"/v1/sandboxes/{box['id']}/start")
    api.ok("PATCH", f"/v1/sandboxes/{box['id']}", json={"tags": {"a": "b"}})
    api.delete(box["id"])
    kinds = [
        "sandbox.created",
        "sandbox.running",
        "process.started",
        "process.exited",
        "sandbox.stopped",
        "sandbox.running",
        "sandbox.updated",
        "sandbox.terminated",
    ]
    told = api.ok("GET", "/v1/events", params={"sandbox": box["id"]})["events"]
    assert [event["kind"] for event in told] == kinds
    assert [event["seq"] for event in told] == sorted({event["seq"] for event in told})
    assert told[3]["data"]["code"] == 3
    assert told[0]["actor"] == told[-1]["actor"]
    with api.events("GET", "/v1/events", params={"sandbox": box["id"], "follow": True}, headers={"Last-Event-ID": str(told[2]["seq"])}) as events:
        assert [data(next(events)) for _ in told[3:]] == told[3:]
    assert api.ok("GET", "/v1/events", params={"sandbox": box["id"], "kind": "sandbox.stopped"})["events"] == told[4:5]
    assert api.ok("GET", "/v1/events", params={"after": told[0]["seq"], "sandbox": box["id"], "limit": 2})["events"] == told[1:3]
    api.refused("invalid_argument", "GET", "/v1/events", params={"after": "x"})
    api.refused("invalid_argument", "GET", "/v1/events?follow=true", headers={"Last-Event-ID": "x"})


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/v1/nonesuch", "not_found", 404),
        ("GET", "/nonesuch", "not_found", 404),
        ("GET", "/v1/sandboxes/", "not_found", 404),
        ("GET", "/v1/sandboxes/" + "x" * 5000, "not_found", 404),
        ("GET", "/v1/sandboxes/%00", "not_found", 404),
        ("GET", "/v1/sandboxes/%ff%fe", "not_found", 404),
        ("PUT", "/v1/sandboxes", "method_not_allowed", 405),
        ("DELETE", "/v1/events", "method_not_allowed", 405),
        ("GET", "/v1/sandboxes/nonesuch", "not_found", 404),
        ("GET", "/v1/sandboxes/sb-aaaaaaaaaaaaaaaa", "not_found", 404),
        ("POST", "/v1/sandboxes/delete", "invalid_argument", 400),
    ],
)
def test_what_is_not_there_is_said_in_the_one_form(api: Api, method: str, path: str, code: str, status: int) -> None:
    api.refused(code, method, path, status=status)


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"image": "\xff"}', b"{}{}", b'{"a":' * 10_000])
def test_a_body_that_is_no_json_object_is_refused(api: Api, body: bytes) -> None:
    api.refused("invalid_argument", "POST", "/v1/sandboxes", content=body)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(api: Api, chunked: bool) -> None:
    blob = b'{"image": "' + b"x" * (5 << 20) + b'"}'
    api.refused("too_large", "POST", "/v1/sandboxes", status=413, content=iter([blob]) if chunked else blob)


def test_a_request_that_is_cut_off_makes_nothing(api: Api) -> None:
    word = f"cut-{uuid.uuid4().hex[:8]}"
    body = json.dumps({"image": "tiny", "name": word}).encode()
    head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    assert b" 201 " not in raw(api.server, head + body[:-1])
    api.refused("not_found", "GET", f"/v1/sandboxes/{word}")


def test_what_a_request_does_not_take_is_refused_not_ignored(api: Api) -> None:
    box = api.create()
    path = f"/v1/sandboxes/{box['id']}"
    for method, rest in (
        ("GET", "?verbose=1"),
        ("DELETE", "?force=true"),
        ("POST", "/stop?kill=true"),
        ("GET", "/processes?all=1"),
        ("POST", "/processes?wait=1"),
    ):
        api.refused("invalid_argument", method, path + rest, **({"json": {"command": "true"}} if "processes" in rest and method == "POST" else {}))
    api.refused("invalid_argument", "POST", f"{path}/stop", json={"force": True})
    assert api.ok("GET", path)["state"] == "running"
    api.delete(box["id"])


def test_bytes_that_are_no_http_are_refused(server: Server) -> None:
    assert b" 400 " in raw(server, b"\x16\x03\x01 not http\r\n\r\n")


def test_openapi_documents_every_route_with_its_errors(api: Api) -> None:
    document = httpx2.get(f"{api.server.url}/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"].items() >= {"type": "http", "scheme": "bearer"}.items()
    operations = {(method.upper(), path): one for path, methods in document["paths"].items() for method, one in methods.items()}
    assert len(operations) > 45
    for (method, path), operation in operations.items():
        assert operation["description"], (method, path)
        if path.startswith("/v1/"):
            for status in ("400", "401", "404", "500", "503"):
                assert operation["responses"][status]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ErrorBody"}, (method, path)
            assert operation["security"] == [{"key": []}], (method, path)
        assert "422" not in operation["responses"] or "HTTPValidationError" not in json.dumps(operation["responses"]["422"])
    assert operations["POST", "/v1/sandboxes"]["responses"]["429"]
    assert "HTTPValidationError" not in json.dumps(document)


def test_a_server_that_leaves_ends_streams_and_the_next_one_goes_on(api: Api, server: Server) -> None:
    box = api.create()
    path = f"/v1/sandboxes/{box['id']}/processes"
    key = {"Idempotency-Key": uuid.uuid4().hex}
    other = api.ok("POST", "/v1/sandboxes", status=201, json={"image": "tiny"}, headers=key)
    seen: list[Event] = []
    told, ended = threading.Event(), threading.Event()

    def follow() -> None:
        with (
            contextlib.suppress(httpx2.TransportError),
            api.events("POST", path, params={"kill_on_disconnect": "true"}, json={"command": "echo a; read x; echo b", "stdin": True}) as events,
        ):
            for event in events:
                seen.append(event)
                if event.name == "output":
                    told.set()
        ended.set()

    reader = threading.Thread(target=follow)
    reader.start()
    assert told.wait(30)
    server.leave()
    assert ended.wait(30)
    reader.join()
    assert [event.name for event in seen] == ["process", "output"]
    server.start()
    process = f"{path}/{data(seen[0])['id']}"
    assert api.ok("GET", process)["running"]
    assert api.ok("GET", f"/v1/sandboxes/{box['id']}")["state"] == "running"
    api.ok("POST", f"{process}/stdin", content=b"\n")
    assert api.request("GET", f"{process}/stdout").content == b"a\nb\n"
    assert api.ok("POST", "/v1/sandboxes", status=201, json={"image": "tiny"}, headers=key) == other
    api.refused("conflict", "POST", "/v1/sandboxes", json={"image": "base"}, headers=key)
    for one in (box, other):
        api.delete(one["id"])


def test_a_server_that_was_killed_forgets_nothing_it_had_answered(api: Api, server: Server) -> None:
    ended, stopped, running = api.create(), api.create(name=f"s-{uuid.uuid4().hex[:8]}"), api.create(tags={"a": "b"})
    api.delete(ended["id"])
    api.ok("POST", f"/v1/sandboxes/{stopped['id']}/stop")
    # Whether one is frozen just now is all that may differ.
    before = {one["id"]: {**api.ok("GET", f"/v1/sandboxes/{one['id']}"), "frozen": False} for one in (ended, stopped, running)}
    events = api.ok("GET", "/v1/events", params={"limit": 10_000})["events"]
    server.kill()
    server.start()
    for id, was in before.items():
        assert {**api.ok("GET", f"/v1/sandboxes/{id}"), "frozen": False} == was
    later = api.ok("GET", "/v1/events", params={"limit": 10_000})["events"]
    assert later[: len(events)] == events
    assert api.ok("POST", f"/v1/sandboxes/{stopped['name']}/start")["state"] == "running"
    for one in (stopped, running):
        api.delete(one["id"])


def test_what_was_stopped_with_everything_starts_again_with_its_disk(api: Api, server: Server) -> None:
    box = api.create()
    api.run(box["id"], "echo kept > /root/file")
    server.down()
    server.start()
    stopped = api.ok("GET", f"/v1/sandboxes/{box['id']}")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "requested")
    api.ok("POST", f"/v1/sandboxes/{box['id']}/start")
    assert api.run(box["id"], "cat /root/file")[0] == b"kept\n"
    api.delete(box["id"])


def test_a_second_server_in_the_same_home_is_refused(server: Server) -> None:
    second = Server(server.home)
    with pytest.raises(AssertionError, match=rf"the server with pid \d+ at {server.url} runs in"):
        second.start()
    assert server.ready()


def test_the_home_is_for_its_owner_only(server: Server) -> None:
    home = Path(server.home)
    assert home.stat().st_mode & 0o077 == 0 or (home / "corral.db").stat().st_mode & 0o077 == 0
