"""Services of sandboxes: begun in the order of their needs, started again when they end, stopped for good when asked; whatever becomes of the server and the sandbox meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest

from corral import Client, Image, Sandbox
from corral.errors import InvalidArgument, NotFound
from corral.schema.service import Service, ServiceState
from harness import web
from harness.server import Server
from harness.web import Answer, wire

T = TypeVar("T")


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(url=server.url, key=server.key) as client:
        yield client


@pytest.fixture
def sandbox(client: Client) -> Iterator[Sandbox]:
    with client.sandboxes.create("tiny") as sandbox:
        yield sandbox


def eventually(sandbox: Sandbox, look: Callable[[], T | None]) -> T:
    """Look again whenever something has happened in the sandbox."""
    if (found := look()) is not None:
        return found
    for _ in sandbox.events(follow=True):
        if (found := look()) is not None:
            return found
    raise AssertionError("no more events")


def is_ready(sandbox: Sandbox, name: str, but: str | None = None) -> Callable[[], Service | None]:
    """`but`: not this process."""

    def look() -> Service | None:
        found = sandbox.services.get(name)
        return found if found.state is ServiceState.READY and found.process != but else None

    return look


def test_they_are_begun_in_order_and_kept_running(server: Server, sandbox: Sandbox) -> None:
    sandbox.services.set("db", "sleep 0.3; touch /tmp/db; exec sleep 1000", ready={"file": "/tmp/db"})
    sandbox.services.set("web", "test -e /tmp/db && exec sleep 1000", needs=["db"], restart="never")
    first = eventually(sandbox, is_ready(sandbox, "web"))
    with pytest.raises(InvalidArgument):
        sandbox.services.set("db", "true", needs=["web"])
    # Killed, it is started again.
    assert first.process is not None
    db = sandbox.services.get("db")
    assert db.process is not None
    sandbox.process(db.process).kill()
    again = eventually(sandbox, is_ready(sandbox, "db", but=db.process))
    assert (again.restarts, again.exit_code) == (1, 137)
    # Another server takes over what runs.
    server.kill()
    server.start()
    assert eventually(sandbox, is_ready(sandbox, "web")).process == first.process
    # Stopped it stays so, though the sandbox is started anew; the others are begun.
    assert sandbox.services.stop("web").state is ServiceState.STOPPED
    assert not any(one.running and one.tag == "service:web" for one in sandbox.processes())
    sandbox.stop()
    sandbox.start()
    eventually(sandbox, is_ready(sandbox, "db", but=again.process))
    assert sandbox.services.get("web").state is ServiceState.STOPPED
    assert sandbox.services.start("web").state is not ServiceState.STOPPED
    eventually(sandbox, is_ready(sandbox, "web"))
    sandbox.services.remove("web")
    with pytest.raises(NotFound):
        sandbox.services.get("web")
    assert [one.name for one in sandbox.services.list()] == ["db"]


def test_what_fails_waits_longer_each_time_and_says_why(sandbox: Sandbox) -> None:
    sandbox.services.set("bad", "exit 3", restart="on-failure")
    sandbox.services.set("once", "exit 0", restart="on-failure")
    sandbox.services.set("none", ["/no/such/program"])
    with pytest.raises(InvalidArgument, match="nobody"):
        sandbox.services.set("lonely", "true", needs=["nobody"])
    sandbox.services.set("slow", "exec sleep 1000", ready={"port": 9, "timeout": 0.2}, restart="never")
    seen = eventually(sandbox, lambda: found if (found := sandbox.services.get("bad")).restarts >= 2 else None)
    assert (seen.exit_code, seen.settings.command) == (3, "exit 3")
    assert eventually(sandbox, lambda: found if (found := sandbox.services.get("once")).state is ServiceState.ENDED else None).exit_code == 0
    for name, words in (("none", "/no/such/program"), ("slow", "0.2 s")):
        assert words in (failed(sandbox, name).detail or "")


def tagged(sandbox: Sandbox, name: str) -> list[str]:
    """Processes of a service that run, found without asking for services."""
    return [one.id for one in sandbox.processes() if one.running and one.tag == f"service:{name}"]


def pass_time(sandbox: Sandbox) -> None:
    """A second and a half at least, in which a service that nobody may look after any more would be started again."""
    sandbox.services.set("clock", "exit 0")
    eventually(sandbox, lambda: True if sandbox.services.get("clock").restarts >= 2 else None)


def test_those_of_a_snapshot_are_begun_in_what_is_made_from_it(client: Client, sandbox: Sandbox) -> None:
    sandbox.files.write("/etc/corral/services/box.json", '{"command": "exec sleep 1000"}')
    odd = {
        "wrong": '{"command": 3}',
        "Upper": '{"command": "exec sleep 1000"}',
        "a" * 249: '{"command": "exec sleep 1000"}',
    }
    for name, text in odd.items():
        sandbox.files.write(f"/etc/corral/services/{name}.json", text)
    made = sandbox.run(
        [
            "/bin/sh",
            "-c",
            r'cd /etc/corral/services && mkdir directory.json && ln -s nowhere link.json && echo "{}" >"$(printf "\377").json"',
        ]
    )
    assert made.exit_code == 0
    snapshot = sandbox.snapshot("with-a-service")
    try:
        with client.sandboxes.create(snapshot.id) as other:
            # Nobody has asked for its services.
            eventually(other, lambda: tagged(other, "box") or None)
            assert [one.name for one in other.services.list()] == ["box"]
            other.services.set("more", "exec sleep 1000")
            eventually(other, is_ready(other, "more"))
            told = [event.data["path"] for event in other.events(kind="service.invalid")]
            assert sorted(told) == sorted(f"/etc/corral/services/{name}.json" for name in (*odd, "directory", "link", "\ufffd"))
    finally:
        snapshot.delete()


def test_one_is_looked_after_once_whoever_changes_it_at_the_same_time(sandbox: Sandbox) -> None:
    sandbox.services.set("web", "exec sleep 1000")
    eventually(sandbox, is_ready(sandbox, "web"))

    def both(*calls: Callable[[], object]) -> None:
        with ThreadPoolExecutor(len(calls)) as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()

    # As when an answer was lost and the request is sent again.
    both(*[lambda: sandbox.services.set("web", "exec sleep 1000")] * 3)
    assert sandbox.services.stop("web").state is ServiceState.STOPPED
    pass_time(sandbox)
    assert tagged(sandbox, "web") == []
    assert sandbox.services.get("web").state is ServiceState.STOPPED
    # One that is removed while it is set either is there and runs, or is not.
    sandbox.services.start("web")
    both(lambda: sandbox.services.set("web", "exec sleep 1000"), lambda: remove(sandbox, "web"))
    pass_time(sandbox)
    assert len(tagged(sandbox, "web")) == len([one for one in sandbox.services.list() if one.name == "web"])


def remove(sandbox: Sandbox, name: str) -> None:
    sandbox.services.remove(name)


def test_those_that_wait_for_one_hear_of_it_though_it_was_changed_or_removed(sandbox: Sandbox) -> None:
    never: dict[str, Any] = {"file": "/tmp/never", "timeout": 600}
    for name in ("db", "old"):
        sandbox.services.set(name, "exec sleep 1000", ready=never)
    sandbox.services.set("web", "exec sleep 1000", needs=["db"])
    sandbox.services.set("late", "exec sleep 1000", needs=["old"])
    assert sandbox.services.get("web").state is ServiceState.NEEDS
    sandbox.services.set("db", "exec sleep 1000")
    eventually(sandbox, is_ready(sandbox, "web"))
    sandbox.services.remove("old")
    assert "old" in (failed(sandbox, "late").detail or "")
    # What asked whether they are ready has gone with them.
    assert not [one for one in sandbox.processes() if one.running and one.tag is None]


def failed(sandbox: Sandbox, name: str) -> Service:
    return eventually(sandbox, lambda: found if (found := sandbox.services.get(name)).state is ServiceState.FAILED else None)


def test_one_that_cannot_be_asked_is_not_ready_and_does_not_run_on(sandbox: Sandbox) -> None:
    sandbox.services.set("odd", "exec sleep 1000", ready={"command": "if"}, restart="never")
    assert "yntax" in (failed(sandbox, "odd").detail or "")
    # Once more, without a shell that could ask.
    assert sandbox.run(["/bin/rm", "/bin/sh"]).exit_code == 0
    sandbox.services.set("mute", ["/bin/sleep", "1000"], ready={"file": "/tmp/never"}, restart="never")
    assert "/bin/sh" in (failed(sandbox, "mute").detail or "")
    assert not [one for one in sandbox.processes() if one.running]
    assert not list(sandbox.events(kind="service.ready"))


def test_nothing_more_is_heard_of_those_of_a_sandbox_that_was_deleted(client: Client, sandbox: Sandbox) -> None:
    with client.sandboxes.create("tiny") as other:
        other.services.set("bad", "exit 3")
        other.services.set("never", "exec sleep 1000", ready={"file": "/tmp/never", "timeout": 600})
        other.services.set("web", "exec sleep 1000", needs=["never"])
        eventually(other, lambda: True if other.services.get("bad").exit_code == 3 else None)
    pass_time(sandbox)
    kinds = [event.kind for event in client.events(sandbox=other.id)]
    assert "sandbox.terminated" in kinds
    assert not [kind for kind in kinds[kinds.index("sandbox.terminated") :] if kind.startswith("service.")]


def test_one_with_a_port_waits_for_its_first_request(client: Client) -> None:
    with client.sandboxes.create("base") as box:
        parts = urlsplit(box.preview(8000).url)
        host, token = parts.netloc, f"Corral-Token: {box.preview_token()}"

        def ask(*fields: str) -> Answer:
            assert parts.port is not None
            with wire(parts.port) as line:
                return line.ask("GET", "/", host, token, *fields)

        assert ask().code == "port_closed"
        serve = ["python3", "-c", web.SERVER, "me", "8000"]
        box.services.set("db", "exec sleep 1000", http_port=5432, ready={"seconds": 0})
        assert box.services.set("web", serve, needs=["db"], http_port=8000, restart="never").state is ServiceState.IDLE
        assert [ask().json["me"] for _ in range(2)] == ["me"] * 2
        first = box.services.get("web")
        assert (first.state, first.restarts) == (ServiceState.READY, 0)
        assert box.services.get("db").state is not ServiceState.IDLE, "it is needed"
        # Once it has ended a request starts it again; stopped it stays so.
        assert first.process is not None
        box.process(first.process).kill()
        eventually(box, lambda: True if box.services.get("web").state is ServiceState.FAILED else None)
        assert ask().json["me"] == "me"
        assert box.services.get("web").process != first.process
        box.services.stop("web")
        assert ask().code == "port_closed"
        assert box.services.get("web").state is ServiceState.STOPPED
        # One that can't serve says why, and for how long people wait.
        box.services.set("web", "echo no; exit 3", http_port=8000, restart="never")
        told = ask()
        assert (told.status, told.code) == (502, "port_closed")
        assert "3" in told.json["error"]["message"]
        box.services.set("web", "exec sleep 1000", http_port=8000, restart="never")
        page = ask("Accept: text/html")
        assert (page.status, page.code) == (503, "starting")
        assert b'http-equiv="refresh"' in page.body


def test_what_is_no_service_is_told_of_within_bounds(client: Client, sandbox: Sandbox) -> None:
    made = sandbox.run(
        ["/bin/sh", "-c", "mkdir -p /etc/corral/services && cd /etc/corral/services && for n in $(seq 400); do echo no >x$n.json; done"], user="root"
    )
    assert made.exit_code == 0
    sandbox.files.write("/etc/corral/services/a.json", '{"command": "exec sleep 1000"}')
    sandbox.stop()
    sandbox.start()
    assert [one.name for one in sandbox.services.list()] == ["a"]
    told = [event.data for event in sandbox.events(kind="service.invalid")]
    assert len(told) == 17
    assert "239 more" in told[-1]["detail"]
    assert "256" in told[-1]["detail"]


def test_whoever_asks_for_those_of_a_paused_sandbox_resumes_it(sandbox: Sandbox) -> None:
    sandbox.services.set("web", "exec sleep 1000")
    before = eventually(sandbox, is_ready(sandbox, "web"))
    sandbox.pause()
    assert [one.name for one in sandbox.services.list()] == ["web"]
    sandbox.pause()
    assert sandbox.services.start("web").process == before.process
    assert eventually(sandbox, is_ready(sandbox, "web")).process == before.process


def test_they_run_as_they_were_asked_to_and_what_becomes_of_them_is_told(client: Client) -> None:
    with client.sandboxes.create("base") as box:
        told = "echo $GREETING $(id -un) $(pwd) >/tmp/$NAME.new; mv /tmp/$NAME.new /tmp/$NAME; exec sleep 1000"
        box.services.set("root", told, env={"NAME": "root", "GREETING": "hello there"}, cwd="/var/tmp", user="root", ready={"command": "test -e /tmp/root"})
        box.services.set("own", ["/bin/sh", "-c", told], env={"NAME": "own"}, ready={"file": "/tmp/own"})
        box.services.set("short", "exit 3", restart="never")
        for name, words in (("root", "hello there root /var/tmp\n"), ("own", "user /home/user\n")):
            eventually(box, is_ready(box, name))
            assert box.files.read_text(f"/tmp/{name}") == words
        assert failed(box, "short").exit_code == 3
        box.services.stop("own")
        happened = [(event.kind, event.data["service"]) for event in box.events() if event.kind.startswith("service.")]
        happened.remove(("service.ready", "short"))  # it waits for nothing, so it is ready as soon as it runs
        assert sorted(happened) == [("service.exited", "short"), ("service.ready", "own"), ("service.ready", "root"), ("service.stopped", "own")]


PROBES = {
    "port": ("exec nc -l -p 8000", {"port": 8000}),
    "url": ("mkdir /w; echo hi >/w/index.html; exec httpd -f -p 8001 -h /w", {"url": "http://127.0.0.1:8001/"}),
    "file": ("touch /up; exec sleep 1000", {"file": "/up"}),
    "process": ("exec nc -l -p 8002", {"process": "nc"}),
    "command": ("echo 1 >/up; exec sleep 1000", {"command": "test -s /up"}),
}


@pytest.mark.parametrize("probe", PROBES)
def test_one_is_ready_when_its_probe_says_so(sandbox: Sandbox, probe: str) -> None:
    command, ready = PROBES[probe]
    sandbox.services.set("web", f"until test -e /go; do sleep 0.05; done; {command}", ready=ready)
    sandbox.services.set("after", "exec sleep 1000", needs=["web"])
    pass_time(sandbox)
    assert (sandbox.services.get("web").state, sandbox.services.get("after").state) == (ServiceState.STARTING, ServiceState.NEEDS)
    sandbox.files.write("/go", b"")
    eventually(sandbox, is_ready(sandbox, "after"))
    assert sandbox.services.get("web").state is ServiceState.READY


def test_those_of_an_image_are_begun_in_order_in_what_is_made_from_it(client: Client) -> None:
    services = {
        "db": '{"command": "sleep 0.2; echo db >>/began; touch /up; exec sleep 1000", "ready": {"file": "/up"}}',
        "web": '{"command": "echo web >>/began; exec sleep 1000", "needs": ["db"]}',
        "off": '{"command": "echo off >>/began; exec sleep 1000", "enabled": false}',
    }
    image = Image.named("tiny").run("mkdir -p /etc/corral/services")
    for name, text in services.items():
        image = image.run(f"echo '{text}' >/etc/corral/services/{name}.json")
    with client.sandboxes.create(image.build(client=client).id) as box:
        # Nobody has asked for its services.
        eventually(box, lambda: tagged(box, "web") or None)
        eventually(box, lambda: box.files.read_text("/began") == "db\nweb\n" or None)
        assert {one.name: one.state for one in box.services.list()}["off"] is ServiceState.STOPPED


def test_those_of_one_that_was_resumed_or_forked_are_looked_after(client: Client, sandbox: Sandbox) -> None:
    sandbox.services.set("web", "exec sleep 1000")
    before = eventually(sandbox, is_ready(sandbox, "web"))
    sandbox.pause()
    sandbox.resume()
    # Nobody asks for services here, which would have them looked after.
    [runs] = tagged(sandbox, "web")
    assert runs == before.process
    sandbox.process(runs).kill()
    eventually(sandbox, lambda: [id for id in tagged(sandbox, "web") if id != runs] or None)
    [child] = sandbox.fork(1)
    with child:
        [theirs] = tagged(child, "web")
        child.process(theirs).kill()
        eventually(child, lambda: [id for id in tagged(child, "web") if id != theirs] or None)
