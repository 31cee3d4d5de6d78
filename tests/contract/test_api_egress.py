"""Policies over HTTP: what can be said, what is kept, what is not yours."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from harness.api import Api
from harness.server import Server

REFUSING = {"rules": [{"to": ["*.example.com"], "ports": ["443"], "action": "deny", "name": "no examples"}], "budget": {"bytes": 10}}
"""Needs no network: nothing at all is reachable."""


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with contextlib.closing(Api(server)) as api:
        yield api


@pytest.fixture
def box(api: Api) -> Iterator[str]:
    made = api.create()
    yield made["id"]
    api.delete(made["id"])


def small(policy: dict[str, Any]) -> dict[str, Any]:
    """A policy without what is as usual."""
    rules = [{name: value for name, value in rule.items() if value is not None and value is not False} for rule in policy["rules"]]
    return {"rules": rules, "budget": {name: value for name, value in policy["budget"].items() if value is not None}}


def test_a_policy_is_shown_and_outlasts_stops_and_servers(api: Api, server: Server) -> None:
    made = api.create(egress=REFUSING)
    path = f"/v1/sandboxes/{made['id']}"
    assert small(made["egress"]) == REFUSING
    assert api.ok("GET", f"{path}/egress") == {"policy": made["egress"], "sent": 0, "received": 0, "proposal": None}
    server.kill()
    server.start()
    assert api.ok("GET", path)["egress"] == made["egress"]
    assert api.ok("PUT", f"{path}/egress", json="none")["policy"] == {**made["egress"], "rules": [], "budget": dict.fromkeys(made["egress"]["budget"])}
    server.kill()  # what was answered is on the disk
    server.start()
    assert api.ok("GET", f"{path}/egress")["policy"]["rules"] == []
    api.ok("POST", f"{path}/stop")
    assert small(api.ok("PUT", f"{path}/egress", json=REFUSING)["policy"]) == REFUSING
    assert small(api.ok("POST", f"{path}/start")["egress"]) == REFUSING
    told = [event for event in api.ok("GET", "/v1/events", params={"sandbox": made["id"]})["events"] if event["kind"] == "egress.changed"]
    assert [event["data"]["rules"] for event in told] == [0, 1]
    api.delete(made["id"])
    assert small(api.ok("GET", f"{path}/egress")["policy"]) == REFUSING
    api.refused("sandbox_ended", "PUT", f"{path}/egress", json="none")


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("everything", "'none'"),
        (7, "object"),
        ({"default": "some"}, "'none'"),
        ({"nonesuch": 1}, "no such field"),
        ({"rules": [{}]}, "missing"),
        ({"rules": [{"to": []}]}, "too short"),
        ({"rules": [{"to": ["a b"]}]}, "domain"),
        ({"rules": [{"to": ["2001:db8::/32"]}]}, "IPv6"),
        ({"rules": [{"to": ["*.*.test"]}]}, "domain"),
        ({"rules": [{"to": ["a.test"], "ports": ["0"]}]}, "port"),
        ({"rules": [{"to": ["a.test"], "ports": ["9-1"]}]}, "port"),
        ({"rules": [{"to": ["a.test"], "protocol": "sctp"}]}, "'tcp'"),
        ({"rules": [{"to": ["a.test"], "inject": {"A b": "x"}}]}, "characters"),
        ({"rules": [{"to": ["a.test"], "inject": {"A": "x\r\nB: y"}}]}, "characters"),
        ({"rules": [{"to": ["*"], "inject": {"A": "{{X}}"}}]}, "named domains"),
        ({"rules": [{"to": ["a.test"], "inject": {"A": "Bearer {{ GITHUB }}"}}]}, "no secret"),
        ({"rules": [{"to": ["a.test"], "inject": {"A": "{{A.B}}"}}]}, "no secret"),
        ({"rules": [{"to": ["10.0.0.0/8"], "http": {"methods": ["GET"]}}]}, "domains"),
        ({"rules": [{"to": ["a.test"], "action": "deny", "inject": {"A": "x"}}]}, "can't also"),
        ({"rules": [{"to": ["a.test"]}] * 257}, "too long"),
        ({"rules": [{"to": ["a.test"] * 1001}]}, "too long"),
        ({"rules": [{"to": ["a.test"]}] * 10_000}, "5,000 destinations"),
        ({"rules": [{"to": ["a.test"] * 1000}] * 6}, "5,000 destinations"),
        ({"rules": [{"to": [f"10.0.{number}.1" for number in range(250)], "ports": ["1-2"] * 41}]}, "10,000 ranges"),
        ({"rules": [{"to": ["ü" * 200]}]}, "domain"),
        ({"rules": [{"to": [f"ü{number}.test" for number in range(101)]}]}, "not ASCII"),
        ({"rules": [{"to": ["a.test"], "name": "two\nlines"}]}, "characters"),
        ({"rules": [{"to": ["a.test"], "name": "\x1b[31mred"}]}, "characters"),
        ({"rules": [{"to": ["a" * 64 + ".test"]}]}, "domain"),
        ({"rules": [{"to": ["10.0.0.1/33"]}]}, "domain"),
        ({"rules": [{"to": ["fe80::1%eth0"]}]}, "IPv6"),
        ({"ask_timeout": 0}, "more than 0"),
        ({"budget": {"bytes": -1}}, "less than 0"),
        ({"budget": {"upload": 1e999}}, "upload"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_policy_that_can_not_be_is_refused_and_changes_nothing(api: Api, box: str, policy: Any, words: str) -> None:
    before = api.ok("GET", f"/v1/sandboxes/{box}/egress")
    error = api.refused("invalid_argument", "PUT", f"/v1/sandboxes/{box}/egress", content=json.dumps(policy))
    assert words in f"{error['message']} {error['hint']}"
    error = api.refused("invalid_argument", "POST", "/v1/sandboxes", content=json.dumps({"image": "tiny", "egress": policy}))
    assert error["details"]["field"].startswith("egress")
    assert api.ok("GET", f"/v1/sandboxes/{box}/egress") == before


def test_what_a_request_does_not_take_is_refused(api: Api, box: str) -> None:
    path = f"/v1/sandboxes/{box}/egress"
    api.refused("invalid_argument", "GET", f"{path}/flows?follow=perhaps")
    api.refused("invalid_argument", "GET", f"{path}/flows?after=-1")
    api.refused("invalid_argument", "GET", f"{path}/denials?limit=10001")
    api.refused("invalid_argument", "POST", f"{path}/learn", json={"apply": True})
    api.refused("invalid_argument", "GET", "/v1/approvals?all=1")
    api.refused("invalid_argument", "POST", "/v1/approvals/ap-x", json={"decision": "perhaps"})
    api.refused("not_found", "POST", "/v1/approvals/ap-x", json={"decision": "allow"})
    api.refused("not_found", "GET", f"/v1/approvals?sandbox=sb-{'a' * 16}")
    for id in ("1", "x", "9" * 40):
        api.refused("not_found", "DELETE", f"/v1/approvals/rules/{id}")


def test_a_reader_looks_and_changes_nothing(api: Api, server: Server, box: str) -> None:
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "r", "role": "reader"})
    with contextlib.closing(Api(server, key["value"])) as reader:
        assert reader.ok("GET", f"/v1/sandboxes/{box}/egress")["policy"]["default"] == "public"
        assert reader.ok("GET", "/v1/approvals") == {"approvals": []}
        reader.refused("forbidden", "PUT", f"/v1/sandboxes/{box}/egress", json="none")
        reader.refused("forbidden", "POST", f"/v1/sandboxes/{box}/egress/learn")
        assert reader.ok("GET", "/v1/approvals/rules") == {"rules": []}
        reader.refused("forbidden", "POST", "/v1/approvals/ap-x", json={"decision": "allow"})
        reader.refused("forbidden", "DELETE", "/v1/approvals/rules/1")
        api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
        reader.refused("unauthenticated", "GET", f"/v1/sandboxes/{box}/egress")


def test_of_many_changes_at_once_one_holds_everywhere(api: Api, server: Server, box: str) -> None:
    def put(number: int) -> None:
        with contextlib.closing(Api(server)) as other:
            other.ok("PUT", f"/v1/sandboxes/{box}/egress", json={"rules": [{"to": [f"n{number}.test"], "action": "deny"}]})

    threads = [threading.Thread(target=put, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = api.ok("GET", f"/v1/sandboxes/{box}/egress")["policy"]["rules"][0]["to"]
    assert api.ok("GET", f"/v1/sandboxes/{box}")["egress"]["rules"][0]["to"] == held
    server.kill()
    server.start()
    assert api.ok("GET", f"/v1/sandboxes/{box}/egress")["policy"]["rules"][0]["to"] == held


def test_a_secret_that_is_none_is_named(api: Api, box: str) -> None:
    name = f"S_{uuid.uuid4().hex[:8]}"
    policy = {"rules": [{"to": ["a.test"], "inject": {"Authorization": f"Bearer {{{{{name}}}}}"}}]}
    for method, path, body in (("POST", "/v1/sandboxes", {"image": "tiny", "egress": policy}), ("PUT", f"/v1/sandboxes/{box}/egress", policy)):
        error = api.refused("not_found", method, path, status=404, json=body)
        assert name in error["message"]
        assert "corral secret create" in error["hint"]
