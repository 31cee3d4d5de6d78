"""What happens to sandboxes is told to a project's own server: a real one, at the end of this machine's cable."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from e2b import E2B

from corral import Client, Sandbox
from corral.errors import InvalidArgument, NotFound
from harness.internet import HERE, Internet
from harness.server import Server

Telling = tuple[dict[str, str], bytes]
"""The headers and body of a request."""


def arrived(internet: Internet, path: str) -> list[Telling]:
    found = [(head.decode(), body) for head, body in list(internet.seen.posts) if head.startswith(f"POST {path} ".encode())]
    return [({name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:])}, body) for head, body in found]


def until(internet: Internet, path: str, true: Callable[[list[Telling]], bool]) -> list[Telling]:
    internet.until(lambda _: true(arrived(internet, path)), 60)
    return arrived(internet, path)


def kinds(tellings: list[Telling], sandbox: str) -> list[str]:
    told = [json.loads(body) for _, body in tellings]
    return [one["event"] for one in told if one["sandbox"] == sandbox]


def place() -> tuple[str, str]:
    """A URL that nobody else uses, and its path."""
    path = f"/echo?token={uuid.uuid4().hex}"
    return f"https://api.example.com{path}", path


def test_a_life_is_told_in_order_signed_and_again_when_it_fails(net: Server, internet: Internet) -> None:
    url, path = place()
    with Client() as client:
        made = client.webhooks.create(url, tags={"team": "a"}, name="ours")
        assert made.secret is not None
        assert [(one.id, one.name, one.secret) for one in client.webhooks.list()] == [(made.id, "ours", None)]
        internet.failing[path] = 2
        with Sandbox.create("tiny", memory=128, tags={"team": "b"}) as other, Sandbox.create("tiny", memory=128, tags={"team": "a"}, name="mine") as mine:
            mine.update(timeout=1000)
            mine.stop()
            mine.start()
        tellings = until(internet, path, lambda found: b"sandbox.terminated" in (found or [({}, b"")])[-1][1])
        assert len({headers["corral-delivery"] for headers, _ in tellings[:3]}) == 1, "tried again, before anything else is told"
        wanted = ["sandbox.created", "sandbox.running", "sandbox.updated", "sandbox.stopped", "sandbox.running", "sandbox.terminated"]
        assert kinds(tellings[2:], mine.id) == wanted
        assert kinds(tellings, other.id) == []
        headers, body = tellings[-1]
        at, _, given = headers["corral-signature"].partition(",v1=")
        assert hmac.new(made.secret.encode(), f"{at[2:]}.".encode() + body, hashlib.sha256).hexdigest() == given
        told = json.loads(body)
        assert (told["sandbox_name"], told["tags"], told["data"]["reason"], headers["corral-webhook"]) == ("mine", {"team": "a"}, "requested", made.id)
        known = {event.seq: event.kind for event in client.events(sandbox=mine.id)}
        assert known[told["seq"]] == "sandbox.terminated"

        # What is not wanted any more, and what happens while it is turned off, is not told.
        assert client.webhooks.update(made.id, kinds=["sandbox.terminated"], tags={}, enabled=False).kinds == ["sandbox.terminated"]
        Sandbox.create("tiny", memory=128).delete()
        client.webhooks.update(made.id, enabled=True)
        count = len(tellings)
        with Sandbox.create("tiny", memory=128) as last:
            pass
        tellings = until(internet, path, lambda found: len(found) > count)
        assert [(json.loads(body)["event"], json.loads(body)["sandbox"]) for _, body in tellings[count:]] == [("sandbox.terminated", last.id)]
        client.webhooks.delete(made.id)
        with pytest.raises(NotFound):
            client.webhooks.get(made.id)


def test_what_is_not_told_yet_is_told_by_the_next_server(net: Server, internet: Internet) -> None:
    url, path = place()
    with Client() as client:
        made = client.webhooks.create(url, kinds=["sandbox.created", "sandbox.terminated"], secret="of our own")
        assert made.secret is None
        internet.failing[path] = 1000
        boxes = [Sandbox.create("tiny", memory=128) for _ in range(3)]
        for one in boxes:
            one.delete()
        first, *_ = until(internet, path, lambda found: len(found) > 0)
        net.kill()
        tried = len(arrived(internet, path))
        internet.failing[path] = 0
        net.start()
        tellings = until(internet, path, lambda found: len(found) >= tried + 6)[tried:]
        assert tellings[0][0]["corral-delivery"] == first[0]["corral-delivery"]
        told = [(json.loads(body)["event"], json.loads(body)["sandbox"]) for _, body in tellings]
        assert told == [("sandbox.created", one.id) for one in boxes] + [("sandbox.terminated", one.id) for one in boxes]
        headers, body = tellings[-1]
        at, _, given = headers["corral-signature"].partition(",v1=")
        assert hmac.new(b"of our own", f"{at[2:]}.".encode() + body, hashlib.sha256).hexdigest() == given
        client.webhooks.delete(made.id)


def test_neither_this_machine_nor_what_is_private_is_called(net: Server, internet: Internet) -> None:
    with Client() as client:
        for url in (f"https://{HERE}/x", "https://inside.example.com/x", "https://node.example.com/x", "https://127.0.0.1/x", "https://169.254.169.254/x"):
            made = client.webhooks.create(url, kinds=["sandbox.created"])
            failed = client.events(kind="webhook.failed", follow=True)
            with Sandbox.create("tiny", memory=128) as sandbox:
                reason = next(event for event in failed if event.data.get("webhook") == made.id)
            assert ("address" in reason.data["reason"], reason.sandbox) == (True, sandbox.id)
            client.webhooks.delete(made.id)
        for wrong in ({"url": "http://www.example.com/"}, {"url": "https://www.example.com/", "kinds": ["webhook.failed"]}):
            with pytest.raises(InvalidArgument):
                client.webhooks.create(**wrong)  # pyright: ignore[reportArgumentType]


def test_e2b_webhooks_tell_what_e2b_would(net: Server, internet: Internet) -> None:
    url, path = place()
    key = "e2b_" + net.key.removeprefix("ck_")
    client = E2B(api_key=key, api_url=net.url, sandbox_url=net.url, request_timeout=60)
    every = [f"sandbox.lifecycle.{word}" for word in ("created", "updated", "killed", "paused", "resumed")]
    with httpx.Client(base_url=net.url, headers={"X-API-Key": key}, timeout=60) as http:
        wanted: dict[str, Any] = {"name": "Ours", "url": url, "enabled": True, "events": every, "signatureSecret": "for us alone"}
        answer = http.post("/events/webhooks", json=wanted)
        assert answer.status_code == 201
        hook = answer.json()
        assert (hook["name"], hook["url"], hook["enabled"], sorted(hook["events"])) == ("Ours", url, True, sorted(every))
        assert "for us alone" not in answer.text
        assert http.get("/events/webhooks").json() == [hook]
        assert http.get(f"/events/webhooks/{hook['id']}").json() == hook

        box = client.Sandbox.create("tiny", timeout=300, metadata={"user": "seven"})
        box.set_timeout(600)
        box.pause()
        box.connect(timeout=60)
        box.create_snapshot(name="not-asked-for")
        box.kill()
        tellings = until(internet, path, lambda found: b"lifecycle.killed" in (found or [({}, b"")])[-1][1])
        listed = http.get(f"/events/sandboxes/{box.sandbox_id}", params={"orderAsc": "true", "limit": 100}).json()
        assert [json.loads(body) for _, body in tellings] == [one for one in listed if not one["type"].endswith("checkpointed")]
        lives = [one["type"].rpartition(".")[2] for one in listed]
        assert [word for word in lives if word != "updated"] == ["created", "paused", "resumed", "checkpointed", "killed"]
        assert "updated" in lives
        assert {one["eventData"]["sandbox_metadata"]["user"] for one in listed} == {"seven"}
        assert next(one for one in listed if one["type"].endswith("updated"))["eventData"]["set_timeout"].endswith("Z")
        for one in listed:
            if one["type"].endswith(("paused", "killed")):
                run = one["eventData"]["execution"]
                assert (run["vcpu_count"], run["memory_mb"], run["execution_time"] >= 0) == (2, 512, True)
        for headers, body in tellings:
            signature = base64.b64encode(hashlib.sha256(b"for us alone" + body).digest()).decode().replace("+", "-").replace("/", "_").rstrip("=")
            assert (headers["e2b-signature"], headers["e2b-signature-version"], headers["e2b-webhook-id"]) == (signature, "v1", hook["id"])
        assert len({headers["e2b-delivery-id"] for headers, _ in tellings}) == len(tellings)

        changed = http.patch(f"/events/webhooks/{hook['id']}", json={"events": ["sandbox.lifecycle.killed"], "enabled": False})
        assert (changed.status_code, changed.json()) == (200, {**hook, "events": ["sandbox.lifecycle.killed"], "enabled": False})
        refused: list[dict[str, Any]] = [{"events": ["sandbox.lifecycle.eaten"]}, {"url": "http://example.com"}, {"colour": "red"}, {"events": []}]
        for wrong in refused:
            assert http.patch(f"/events/webhooks/{hook['id']}", json=wrong).status_code == 400
        assert http.delete(f"/events/webhooks/{hook['id']}").status_code == 200
        assert http.get(f"/events/webhooks/{hook['id']}").status_code == 404
        client.Sandbox.delete_snapshot("not-asked-for")
