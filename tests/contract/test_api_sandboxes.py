"""Sandboxes over HTTP: their life from creation to end, on the real engine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from corral.node import record
from corral.places import Places
from harness.api import Api, data
from harness.server import Server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture
def mark() -> str:
    """A word that only this test uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def box(api: Api, mark: str) -> Iterator[dict[str, Any]]:
    box = api.create(name=f"box-{mark}", tags={"mark": mark})
    yield box
    api.delete(box["id"])


def until(api: Api, sandbox: str, kind: str) -> dict[str, Any]:
    """Follow the events of a sandbox until one of this kind comes."""
    with api.events("GET", "/v1/events", params={"sandbox": sandbox, "follow": True}) as events:
        return next(event for event in map(data, events) if event["kind"] == kind)


def test_a_create_answers_with_a_running_sandbox_and_where_the_time_went(api: Api, mark: str) -> None:
    answer = api.request(
        "POST", "/v1/sandboxes", json={"image": "tiny", "name": f"a-{mark}", "env": {"A": "1"}, "tags": {"mark": mark}, "cpu": 0.5, "memory": 256}
    )
    assert answer.status_code == 201
    box = answer.json()
    try:
        assert box["state"] == "running"
        assert (box["name"], box["image"], box["cpu"], box["memory"], box["tags"]) == (f"a-{mark}", "tiny", 0.5, 256, {"mark": mark})
        assert box["deadline"] > box["started_at"] >= box["created_at"]
        phases = {part.split(";")[0] for part in answer.headers["server-timing"].split(", ")}
        assert {"queue", "claim", "rootfs", "ready", "total"} <= phases
        assert set(box["timing"]) == phases
        assert api.ok("GET", f"/v1/sandboxes/{box['id']}") == box == api.ok("GET", f"/v1/sandboxes/a-{mark}")
        assert api.run(box["id"], "echo $A")[0] == b"1\n"
    finally:
        api.delete(box["id"])


def test_nothing_has_to_be_said_to_create_one(api: Api) -> None:
    box = api.ok("POST", "/v1/sandboxes", status=201)
    assert (box["image"], box["state"], box["timeout"]) == ("base", "running", 3600)
    api.delete(box["id"])


def test_a_name_is_unique_among_living_sandboxes(api: Api, box: dict[str, Any]) -> None:
    error = api.refused("conflict", "POST", "/v1/sandboxes", json={"image": "tiny", "name": box["name"]})
    assert error["details"]["sandbox"] == box["id"]
    other = api.create()
    api.refused("conflict", "PATCH", f"/v1/sandboxes/{other['id']}", json={"name": box["name"]})
    api.delete(other["id"])
    api.delete(box["id"])
    again = api.create(name=box["name"])
    api.delete(again["id"])


def test_lists_are_paged_and_filtered(api: Api, mark: str) -> None:
    made = [api.create(tags={"mark": mark, "odd": str(number % 2)})["id"] for number in range(5)]
    try:
        found: list[str] = []
        cursor: str | None = None
        while True:
            page = api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}", "limit": 2, **({"cursor": cursor} if cursor else {})})
            found += [one["id"] for one in page["sandboxes"]]
            assert len(page["sandboxes"]) <= 2
            if (cursor := page["next"]) is None:
                break
        assert found == made[::-1]
        odd = api.ok("GET", "/v1/sandboxes", params=[("tag", f"mark={mark}"), ("tag", "odd=1")])
        assert [one["id"] for one in odd["sandboxes"]] == [made[3], made[1]]
        api.ok("POST", f"/v1/sandboxes/{made[0]}/stop")
        stopped = api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}", "state": "stopped"})
        assert [one["id"] for one in stopped["sandboxes"]] == made[:1]
    finally:
        gone = api.ok("POST", "/v1/sandboxes/delete", json={"tags": {"mark": mark}})
    assert {one["id"] for one in gone["sandboxes"]} == set(made)
    assert {one["state"] for one in gone["sandboxes"]} == {"terminated"}
    assert api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}"})["sandboxes"] == []
    ended = api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}", "state": "terminated"})
    assert {one["id"] for one in ended["sandboxes"]} == set(made)


def test_changes_are_those_that_were_asked_for(api: Api, box: dict[str, Any], mark: str) -> None:
    path = f"/v1/sandboxes/{box['id']}"
    changed = api.ok("PATCH", path, json={"tags": {"mark": mark, "b": "2"}, "idle_timeout": 500, "on_timeout": "stop"})
    assert changed == {**box, "tags": {"mark": mark, "b": "2"}, "idle_timeout": 500, "on_timeout": "stop"}
    never = api.ok("PATCH", path, json={"timeout": None, "name": None})
    assert (never["timeout"], never["deadline"], never["name"]) == (None, None, None)
    api.refused("not_found", "GET", f"/v1/sandboxes/{box['name']}")
    assert api.ok("PATCH", path, json={}) == never
    api.refused("invalid_argument", "PATCH", path, json={"tags": None})
    api.refused("invalid_argument", "PATCH", path, json={"memory": 1024})


def test_extending_moves_the_deadline_and_never_nearer(api: Api, box: dict[str, Any]) -> None:
    path = f"/v1/sandboxes/{box['id']}/extend"
    assert api.ok("POST", path, json={"seconds": 1})["deadline"] == box["deadline"]
    assert api.ok("POST", path, json={"seconds": 7200})["deadline"] > box["deadline"]
    api.refused("invalid_argument", "POST", path, json={"seconds": -1})


def test_a_stopped_sandbox_keeps_its_disk_and_starts_again(api: Api, box: dict[str, Any]) -> None:
    path = f"/v1/sandboxes/{box['id']}"
    api.run(box["id"], "echo kept > /root/file")
    _, _, process = api.run(box["id"], "echo said")
    for _ in range(2):
        stopped = api.ok("POST", f"{path}/stop")
        assert (stopped["state"], stopped["reason"], stopped["deadline"]) == ("stopped", "requested", None)
    api.refused("invalid_state", "POST", f"{path}/processes", json={"command": "true"})
    api.refused("invalid_state", "GET", f"{path}/files?path=/root/file")
    api.refused("invalid_state", "POST", f"{path}/extend", json={"seconds": 1})
    assert api.request("GET", f"{path}/processes/{process['id']}/stdout").content == b"said\n"
    for _ in range(2):
        started = api.ok("POST", f"{path}/start")
        assert (started["state"], started["reason"]) == ("running", None)
        assert started["deadline"] > box["deadline"]
    assert api.run(box["id"], "cat /root/file")[0] == b"kept\n"
    assert api.request("GET", f"{path}/processes/{process['id']}/stdout").content == b"said\n"


def test_ending_is_final_and_can_be_repeated(api: Api, mark: str) -> None:
    box = api.create(name=f"end-{mark}")
    path = f"/v1/sandboxes/{box['id']}"
    ended = api.delete(box["name"])
    assert (ended["state"], ended["reason"]) == ("terminated", "requested")
    assert ended["ended_by"].startswith("ke-")
    assert api.delete(box["id"]) == ended == api.ok("GET", path)
    api.refused("not_found", "GET", f"/v1/sandboxes/{box['name']}")
    for method, rest in (("POST", "/start"), ("POST", "/stop"), ("GET", "/processes"), ("GET", "/metrics"), ("GET", "/files?path=/")):
        error = api.refused("sandbox_ended", method, path + rest, status=410)
        assert error["details"]["reason"] == "requested"


@pytest.mark.parametrize(("on_timeout", "state"), [("terminate", "terminated"), ("stop", "stopped")])
@pytest.mark.parametrize(("which", "reason"), [("timeout", "timeout"), ("idle_timeout", "idle")])
def test_time_that_is_up_ends_it_as_it_was_told(api: Api, on_timeout: str, state: str, which: str, reason: str) -> None:
    box = api.create(**{which: 0.3, "on_timeout": on_timeout})
    happened = until(api, box["id"], f"sandbox.{state}")
    assert (happened["data"]["reason"], happened["actor"]) == (reason, reason)
    ended = api.ok("GET", f"/v1/sandboxes/{box['id']}")
    assert (ended["state"], ended["reason"], ended["ended_by"]) == (state, reason, reason)
    api.delete(box["id"])


def test_use_keeps_a_sandbox_from_being_idle(api: Api) -> None:
    box = api.create(idle_timeout=2)
    out, _, process = api.run(box["id"], "for i in 1 2 3 4 5 6; do sleep 0.5; echo $i; done")
    assert (process["exit_code"], out) == (0, b"1\n2\n3\n4\n5\n6\n")
    assert until(api, box["id"], "sandbox.terminated")["data"]["reason"] == "idle"


def test_a_sandbox_whose_sentry_dies_is_stopped_and_its_disk_is_there(api: Api, server: Server, box: dict[str, Any]) -> None:
    api.run(box["id"], "echo kept > /root/file; sync")
    os.kill(sentry(server, box["id"]), signal.SIGKILL)
    until(api, box["id"], "sandbox.stopped")
    stopped = api.ok("GET", f"/v1/sandboxes/{box['id']}")
    assert stopped["state"] == "stopped"
    assert stopped["reason"] in ("killed", "crashed")
    assert stopped["ended_by"] == "node"
    api.ok("POST", f"/v1/sandboxes/{box['id']}/start")
    assert api.run(box["id"], "cat /root/file")[0] == b"kept\n"


def sentry(server: Server, sandbox: str) -> int:
    """The pid of a sandbox's kernel."""
    return record.parse(json.loads((Places(server.home).boxes / f"{sandbox}.json").read_text())).identity.pid


def test_a_delete_while_it_is_being_created_leaves_nothing(api: Api, server: Server, mark: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        creating = [pool.submit(api.request, "POST", "/v1/sandboxes", json={"image": "tiny", "tags": {"mark": mark}}) for _ in range(8)]
        while not all(one.done() for one in creating):
            api.ok("POST", "/v1/sandboxes/delete", json={"tags": {"mark": mark}})
        assert {one.result().status_code for one in creating} == {201}
    api.ok("POST", "/v1/sandboxes/delete", json={"tags": {"mark": mark}})
    assert api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}"})["sandboxes"] == []


def test_one_key_makes_one_sandbox(api: Api, mark: str) -> None:
    how: dict[str, Any] = {"json": {"image": "tiny", "tags": {"mark": mark}}, "headers": {"Idempotency-Key": mark}}
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: api.ok("POST", "/v1/sandboxes", status=201, **how), range(5)))
    assert all(answer == answers[0] for answer in answers)
    assert len(api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}"})["sandboxes"]) == 1
    assert api.ok("POST", "/v1/sandboxes", status=201, **how) == answers[0]
    api.refused("conflict", "POST", "/v1/sandboxes", json={"image": "tiny"}, headers=how["headers"])
    api.delete(answers[0]["id"])


def test_a_client_that_hangs_up_before_it_is_answered_leaves_nothing(api: Api, mark: str) -> None:
    body = json.dumps({"image": "tiny", "tags": {"mark": mark}}).encode()
    head = f"POST /v1/sandboxes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    host, _, port = api.server.url.removeprefix("http://").partition(":")
    with api.events("GET", "/v1/events", params={"follow": True, "after": newest(api)}) as events:
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            created = next(event for event in map(data, events) if event["kind"] == "sandbox.created")
        ends = ("sandbox.failed", "sandbox.terminated")
        assert next(event for event in map(data, events) if event["sandbox"] == created["sandbox"] and event["kind"] in ends)
    assert api.ok("GET", "/v1/sandboxes", params={"tag": f"mark={mark}"})["sandboxes"] == []


def newest(api: Api) -> int:
    """The number of the last event so far."""
    after = 0
    while told := api.ok("GET", "/v1/events", params={"after": after, "limit": 10_000})["events"]:
        after = told[-1]["seq"]
    return after


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"image": "nonesuch"}, "image_not_found", None),
        ({"image": "../../etc"}, "image_not_found", None),
        ({"memory": -1}, "invalid_argument", "memory"),
        ({"memory": 0}, "invalid_argument", "memory"),
        ({"memory": "much"}, "invalid_argument", "memory"),
        ({"memory": 1_000_000}, "invalid_argument", "memory"),
        ({"memory": 10**30}, "invalid_argument", "memory"),
        ({"cpu": 0}, "invalid_argument", "cpu"),
        ({"cpu": -1}, "invalid_argument", "cpu"),
        ({"cpu": 200}, "invalid_argument", "cpu"),
        ({"workdir": "work"}, "invalid_argument", "workdir"),
        ({"workdir": "/a\0b"}, "invalid_argument", "workdir"),
        ({"disk": 4_000_000}, "invalid_argument", "disk"),
        ({"timeout": 0}, "invalid_argument", "timeout"),
        ({"timeout": -1}, "invalid_argument", "timeout"),
        ({"timeout": "soon"}, "invalid_argument", "timeout"),
        ({"timeout": 1e300}, "invalid_argument", "timeout"),
        ({"pids": 1}, "invalid_argument", "pids"),
        ({"name": "Bad Name"}, "invalid_argument", "name"),
        ({"egress": "nonesuch"}, "invalid_argument", "egress.default"),
        ({"nonesuch": 1}, "invalid_argument", "nonesuch"),
        ({"env": {"A": "x\0y"}}, "invalid_argument", "env.A"),
    ],
)
def test_a_create_that_can_not_be_is_refused_and_leaves_nothing(api: Api, mark: str, fields: dict[str, Any], code: str, field: str | None) -> None:
    error = api.refused(code, "POST", "/v1/sandboxes", json={"image": "tiny", "tags": {"mark": mark}, **fields})
    assert field is None or error["details"]["field"] == field
    everything = ("creating", "running", "stopped", "failed", "terminated")
    page = api.ok("GET", "/v1/sandboxes", params=[("tag", f"mark={mark}"), *(("state", state) for state in everything)])
    assert page["sandboxes"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=100000", "cursor=%21", "cursor=AAAA", "state=asleep", "tag=x", "tag==", "nonesuch=1"])
def test_a_list_that_can_not_be_is_refused(api: Api, query: str) -> None:
    api.refused("invalid_argument", "GET", f"/v1/sandboxes?{query}")


def test_a_project_has_no_more_than_its_quota(api: Api, server: Server, mark: str) -> None:
    project = f"q-{mark}"
    api.ok("POST", "/v1/projects", status=201, json={"name": project, "max_sandboxes": 2, "max_memory": 700})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "k", "project": project})
    member = Api(server, key["value"])
    with contextlib.closing(member):
        first = member.create(memory=512)
        error = member.refused("quota_exceeded", "POST", "/v1/sandboxes", status=429, json={"image": "tiny", "memory": 512})
        assert (error["details"]["quota"], error["details"]["limit"], error["details"]["used"]) == ("memory", 700, 512)
        member.ok("POST", f"/v1/sandboxes/{first['id']}/stop")
        second = member.create(memory=512)
        member.refused("quota_exceeded", "POST", f"/v1/sandboxes/{first['id']}/start")
        error = member.refused("quota_exceeded", "POST", "/v1/sandboxes", json={"image": "tiny", "memory": 64})
        assert error["details"]["quota"] == "sandboxes"
        api.refused("conflict", "DELETE", f"/v1/projects/{project}")
        for one in (first, second):
            member.delete(one["id"])
    api.ok("DELETE", f"/v1/projects/{project}", status=204)
