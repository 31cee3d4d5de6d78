"""What people decide about sandboxes' connections: secrets that are set outside, questions that are answered, what is learnt."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Iterator

import pytest

from corral import Client, Egress, Sandbox, Secret
from corral.errors import Conflict, InvalidArgument, NotFound
from corral.schema.egress import Approval
from harness.internet import HERE, OTHER, WEB, Internet
from harness.server import Server
from security.test_network import box, python, reached

VALUE = f"t0k3n-{uuid.uuid4().hex}"
ASK = "import urllib.request as r; print(r.urlopen('http://{host}/{path}', timeout=60).status)"


@pytest.fixture
def token(net: Server) -> Iterator[str]:
    name = f"T_{uuid.uuid4().hex[:8]}"
    Secret.create(name, VALUE)
    yield name
    Secret.delete(name)


def heads(internet: Internet, path: str) -> list[str]:
    return [head.decode() for head in internet.seen.requests if f" {path} " in head.decode()]


def asked(client: Client, sandbox: Sandbox) -> Approval:
    """The next question of this sandbox."""
    for event in client.events(sandbox=sandbox.id, kind="egress.approval", follow=True):
        waiting = [one for one in sandbox.egress.approvals() if one.id == event.data["id"]]
        if waiting:
            return waiting[0]
    raise AssertionError("events never end")


def test_a_secret_is_used_outside_and_is_not_inside(net: Server, internet: Internet, token: str) -> None:
    egress = Egress.rule("api.example.com", inject={"Authorization": f"Bearer {{{{{token}}}}}"}, name="the API").allow("www.example.com")
    fetch = "import urllib.request as r; print(r.urlopen('https://api.example.com/{path}', timeout=30).status)"
    with box(egress) as sandbox:
        first, second, third = (uuid.uuid4().hex for _ in range(3))
        assert python(sandbox, fetch.format(path=first)) == "200"
        assert [f"Bearer {VALUE}" in head for head in heads(internet, f"/{first}")] == [True]
        inside = sandbox.run(f"env; cat /proc/*/environ; grep -rl {VALUE[:20]} /etc /run /tmp /home 2>/dev/null")
        assert VALUE not in inside.stdout
        with Client() as client:
            client.secrets.change(token, VALUE[::-1])
            assert python(sandbox, fetch.format(path=second)) == "200"
            assert [f"Bearer {VALUE[::-1]}" in head for head in heads(internet, f"/{second}")] == [True]
            with pytest.raises(InvalidArgument, match="header"):
                client.secrets.change(token, "two\nlines")
            with pytest.raises(Conflict, match=sandbox.id):
                Secret.delete(token)
        net.kill()
        net.start()
        assert python(sandbox, fetch.format(path=third)) == "200"
        assert [f"Bearer {VALUE[::-1]}" in head for head in heads(internet, f"/{third}")] == [True]


def test_a_question_is_told_to_the_projects_own_server_signed_and_again_when_it_fails(net: Server, internet: Internet) -> None:
    def arrived(path: str) -> list[tuple[dict[str, str], bytes]]:
        found = [(head.decode(), body) for head, body in list(internet.seen.posts) if head.startswith(f"POST {path} ".encode())]
        return [({k.lower(): v for k, _, v in (line.partition(": ") for line in head.split("\r\n")[1:])}, body) for head, body in found]

    def until(path: str, count: int) -> list[tuple[dict[str, str], bytes]]:
        deadline = time.monotonic() + 30
        while len(arrived(path)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return arrived(path)

    with Client() as client, box(Egress.none().ask("*.example.com", ports=80, timeout=120)) as sandbox:
        secret = client.approvals.set_webhook("https://api.example.com/echo?token=1").secret
        assert secret is not None
        found = client.approvals.webhook()
        assert found is not None
        assert (found.url, found.secret) == ("https://api.example.com/echo?token=1", None)
        process = sandbox.exec("python3", "-c", ASK.format(host="www.example.com", path="x"))
        headers, body = until("/echo?token=1", 1)[0]
        told = json.loads(body)
        assert (told["event"], told["sandbox"], told["approval"]["name"]) == ("egress.approval", sandbox.id, "www.example.com")
        at, _, given = headers["corral-signature"].partition(",v1=")
        assert hmac.new(secret.encode(), f"{at[2:]}.".encode() + body, hashlib.sha256).hexdigest() == given
        # The server is killed in between; the webhook is kept, and one that fails is tried again with the same delivery.
        client.approvals.allow(told["approval"]["id"])
        assert process.communicate()[0] == "200\n"
        assert json.loads(until("/echo?token=1", 2)[1][1])["approval"]["decision"] == "allow"
        client.approvals.set_webhook("https://www.example.com/garbage")
        process = sandbox.exec("python3", "-c", ASK.format(host="db.example.com", path="x"))
        tries = until("/garbage", 2)
        assert len({headers["corral-delivery"] for headers, _ in tries}) == 1
        client.approvals.deny(asked(client, sandbox).id)
        # Neither the machine itself nor what is private is ever called.
        failed = client.events(sandbox=sandbox.id, kind="webhook.failed", follow=True)
        for url in (f"https://{HERE}/x", "https://inside.example.com/x", "https://node.example.com/x", "https://127.0.0.1/x", "https://169.254.169.254/x"):
            client.approvals.set_webhook(url)
            sandbox.exec("python3", "-c", ASK.format(host="www.example.com", path=uuid.uuid4().hex))
            assert "address" in next(event.data["reason"] for event in failed if event.data["url"] == url)
        client.approvals.remove_webhook()
        assert client.approvals.webhook() is None
        with pytest.raises(InvalidArgument, match="https"):
            client.approvals.set_webhook("http://www.example.com/")


def test_a_policy_that_names_no_secret_of_the_project_is_refused(net: Server) -> None:
    egress = Egress.rule("api.example.com", inject={"A": "{{NONE_OF_THESE}}"})
    with pytest.raises(NotFound, match="NONE_OF_THESE"):
        Sandbox.create("tiny", egress=egress)
    with box("none") as sandbox:
        with pytest.raises(NotFound, match="NONE_OF_THESE"):
            sandbox.egress.set(egress)
        assert sandbox.egress.get() == Egress.none()


def test_a_question_is_decided_for_one_for_all_and_taken_back(net: Server) -> None:
    egress = Egress.none().ask("*.example.com", ports=80, timeout=120)
    with Client() as client, box(egress) as sandbox:
        process = sandbox.exec("python3", "-c", ASK.format(host="www.example.com", path="x"))
        question = asked(client, sandbox)
        assert (question.name, question.port, question.sandbox) == ("www.example.com", 80, sandbox.id)
        assert client.approvals.allow(question.id, scope="sandbox").scope == "sandbox"
        assert process.communicate()[0] == "200\n"
        assert [rule.to for rule in sandbox.egress.get().policy.rules] == [["www.example.com"], ["*.example.com"]]
        assert python(sandbox, ASK.format(host="www.example.com", path="x")) == "200"

        process = sandbox.exec("python3", "-c", ASK.format(host="api.example.com", path="x"))
        client.approvals.deny(asked(client, sandbox).id, scope="always")
        process.communicate()
        assert process.poll() == 1
        (kept,) = client.approvals.rules()
        assert (kept.rule.to, kept.rule.action) == (["api.example.com"], "deny")
        with box(egress) as other, box("none") as closed:
            # Denied at once, without a question.
            assert other.run(["python3", "-c", ASK.format(host="api.example.com", path="x")], timeout=60).exit_code == 1
            assert other.egress.approvals() == []
            assert closed.egress.get() == Egress.none()
            client.approvals.forget(kept.id)
            process = other.exec("python3", "-c", ASK.format(host="api.example.com", path="x"))
            client.approvals.allow(asked(client, other).id)
            assert process.communicate()[0] == "200\n"
            assert other.egress.get() == egress
        told = [event.data["scope"] for event in sandbox.events(kind="egress.decided")]
        assert told == ["sandbox", "always"]


def test_what_is_learnt_is_enough_and_no_more(net: Server) -> None:
    with box("none") as sandbox:
        sandbox.egress.learn()
        assert python(sandbox, ASK.format(host="www.example.com", path="x")) == "200"
        deadline = time.monotonic() + 30
        while not (proposal := sandbox.egress.proposal()) or not proposal.policy.rules:
            assert time.monotonic() < deadline
            time.sleep(0.1)  # flows are told in batches
        assert [rule.to for rule in proposal.policy.rules] == [["www.example.com"]]
        sandbox.egress.set(proposal)
        assert python(sandbox, ASK.format(host="www.example.com", path="x")) == "200"
        assert sandbox.run(["python3", "-c", ASK.format(host="api.example.com", path="x")], timeout=60).exit_code == 1
        assert [flow.name for flow in sandbox.egress.flows() if flow.kind == "http" or flow.kind == "tcp"]


def test_flows_can_be_followed_until_the_sandbox_is_deleted(net: Server) -> None:
    with box(Egress.allow("www.example.com").allow(f"{WEB}/32", ports=7)) as sandbox:
        flows = sandbox.egress.flows(follow=True)
        for path in ("one", "two"):
            assert python(sandbox, ASK.format(host="www.example.com", path=path)) == "200"
            found = next(flow for flow in flows if flow.kind == "http")
            assert (found.name, found.path) == ("www.example.com", f"/{path}")
        # A connection that the kernel let through is told when it is over, though nobody asks for it again.
        assert reached(sandbox, (WEB, 7)) == [(WEB, 7)]
        found = next(flow for flow in flows if flow.kind == "tcp" and flow.port == 7)
        assert found.received > 0
        sandbox.delete()
        assert [flow for flow in flows if flow.seq <= found.seq] == []


def test_why_it_was_denied_can_be_read_inside(net: Server) -> None:
    with box(Egress.allow("www.example.com")) as sandbox:
        assert reached(sandbox, ("db.example.com", 80), (OTHER, 7)) == []
        deadline = time.monotonic() + 30
        while True:
            lines = sandbox.files.read("/run/corral/denials").splitlines() if sandbox.files.exists("/run/corral/denials") else []
            told = [json.loads(line) for line in lines]
            if {"db.example.com", OTHER} <= {one.get("name") or one.get("address") for one in told}:
                break
            assert time.monotonic() < deadline, told
            time.sleep(0.05)
        assert all(one["reason"] and one["at"] for one in told)
        # However much is denied, it stays small.
        script = f"""
import socket
for port in range(1000, 1200):
    try: socket.create_connection(("{OTHER}", port), timeout=1)
    except OSError: pass
"""
        python(sandbox, script)
        assert len(sandbox.files.read("/run/corral/denials").splitlines()) <= 50


def test_flows_come_in_pages_and_denials_are_events_once(net: Server) -> None:
    with Client() as client, box(Egress.allow("www.example.com")) as sandbox:
        for _ in range(5):
            sandbox.run(["python3", "-c", ASK.format(host="db.example.com", path="x")], timeout=60)
        deadline = time.monotonic() + 30
        while len(list(sandbox.egress.denials())) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        every = list(sandbox.egress.flows())
        assert [flow.seq for flow in every] == sorted({flow.seq for flow in every})
        assert list(sandbox.egress.flows(after=every[1].seq))[: len(every) - 2] == every[2:]
        told = list(client.events(sandbox=sandbox.id, kind="egress.denied"))
        assert len(told) == len({(event.data.get("name") or event.data.get("address"), event.data.get("port")) for event in told})
        assert told[0].data["reason"]
