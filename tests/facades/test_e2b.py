"""E2B's own Python client, unchanged, against a real server: what a program written for it sees."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import re
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import e2b
import httpx
import pytest
from e2b import (
    E2B,
    CommandExitException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    PtySize,
    RateLimitException,
    Sandbox,
    SandboxQuery,
    SandboxState,
    TimeoutException,
)

from harness.api import Api
from harness.server import Server

GIVE_UP = 60


@pytest.fixture(scope="module")
def client(server: Server) -> E2B:
    return E2B(api_key="e2b_" + server.key.removeprefix("ck_"), api_url=server.url, sandbox_url=server.url, request_timeout=GIVE_UP)


@pytest.fixture(scope="module")
def box(client: E2B) -> Iterator[Sandbox]:
    """A sandbox that several tests use, each in a directory of its own."""
    made = client.Sandbox.create("base", timeout=600)
    yield made
    made.kill()


def test_a_sandbox_is_created_found_kept_and_killed(client: E2B) -> None:
    box = client.Sandbox.create("base", timeout=120, metadata={"run": "seven & a half"}, envs={"FLAVOR": "sour"})
    other = client.Sandbox.create("base", timeout=120, metadata={"run": "seven & a half"})
    assert box.is_running()
    assert box.commands.run("echo $FLAVOR").stdout == "sour\n"
    found = box.get_info()
    assert (found.sandbox_id, found.name, found.metadata, found.state) == (box.sandbox_id, "base", {"run": "seven & a half"}, SandboxState.RUNNING)
    assert found.template_id == "base", "a template has no other id"
    assert 60 < (found.end_at - found.started_at).total_seconds() < 180

    pages = client.Sandbox.list(query=SandboxQuery(metadata={"run": "seven & a half"}), limit=1)
    listed = [pages.next_items()[0].sandbox_id, pages.next_items()[0].sandbox_id]
    assert listed == [other.sandbox_id, box.sandbox_id]
    assert not pages.has_next

    box.set_timeout(1000)
    assert (box.get_info().end_at - found.started_at).total_seconds() > 900
    assert client.Sandbox.connect(box.sandbox_id, timeout=60).commands.run("hostname").stdout.strip() == box.sandbox_id
    assert (box.get_info().end_at - found.started_at).total_seconds() > 900, "connecting never brings the end nearer"
    assert box.get_metrics()[-1].mem_used > 0

    assert other.kill()
    assert box.kill()
    assert not box.kill()
    assert not box.is_running()
    with pytest.raises(TimeoutException):
        box.commands.run("true")
    with pytest.raises(e2b.SandboxNotFoundException):
        client.Sandbox.connect(box.sandbox_id)


def test_commands_run_and_can_be_talked_to(box: Sandbox) -> None:
    out: list[str] = []
    result = box.commands.run("echo one; echo two >&2; pwd; id -un", on_stdout=out.append)
    assert (result.stdout, result.stderr, result.exit_code) == ("one\n/home/user\nuser\n", "two\n", 0)
    assert "".join(out) == result.stdout
    assert box.commands.run("pwd; id -un; echo $COLOR", cwd="/tmp", user="root", envs={"COLOR": "red"}).stdout == "/tmp\nroot\nred\n"
    with pytest.raises(CommandExitException) as failed:
        box.commands.run("echo bad >&2; exit 7")
    assert (failed.value.exit_code, failed.value.stderr) == (7, "bad\n")
    with pytest.raises(InvalidArgumentException, match="does not exist"):
        box.commands.run("true", cwd="/no/such/place")
    with pytest.raises(e2b.AuthenticationException, match="invalid username"):
        box.commands.run("true", user="nobody-at-all")
    with pytest.raises(TimeoutException):
        box.commands.run("sleep 100", timeout=1)

    echo = box.commands.run("cat; echo end", background=True, stdin=True)
    assert echo.pid in [each.pid for each in box.commands.list()]
    box.commands.send_stdin(echo.pid, "hello\n")
    box.commands.close_stdin(echo.pid)
    assert echo.wait().stdout == "hello\nend\n"

    count = box.commands.run("cat; echo end", background=True, stdin=True)
    box.commands.stream_input(count.pid, (piece for piece in (b"one ", b"two ", b"three\n")))
    box.commands.close_stdin(count.pid)
    assert count.wait().stdout == "one two three\nend\n"

    lasting = box.commands.run("echo begun; sleep 1000", background=True)
    late = box.commands.connect(lasting.pid)
    assert next(iter(late))[0] == "begun\n", "who comes late gets the output from its beginning"
    assert box.commands.kill(lasting.pid)
    with pytest.raises(CommandExitException) as killed:
        lasting.wait()
    assert killed.value.exit_code == -1
    assert not box.commands.kill(lasting.pid)


def test_many_commands_run_at_once(box: Sandbox, client: E2B) -> None:
    async def all_of_them() -> list[str]:
        same = await client.AsyncSandbox.connect(box.sandbox_id)
        results = await asyncio.gather(*(same.commands.run(f"echo {number}") for number in range(60)))
        return [result.stdout for result in results]

    assert asyncio.run(all_of_them()) == [f"{number}\n" for number in range(60)]


def test_files_are_written_read_listed_and_watched(box: Sandbox) -> None:
    files: Any = box.files  # its types are not complete
    assert files.make_dir("work")
    assert not files.make_dir("work")
    watch = files.watch_dir("work", recursive=True)
    assert files.write("work/a.txt", "grüße").path == "/home/user/work/a.txt"
    assert files.read("work/a.txt") == "grüße"
    big = bytes(range(256)) * 20_000
    files.write("work/deep/big.bin", big, gzip=True)
    assert files.read("work/deep/big.bin", format="bytes") == big
    assert b"".join(files.read("work/deep/big.bin", format="stream")) == big
    assert [(each.name, each.type) for each in files.list("work", depth=2)] == [("a.txt", FileType.FILE), ("deep", FileType.DIR), ("big.bin", FileType.FILE)]
    info = files.get_info("work/a.txt")
    assert (info.size, info.permissions, info.owner, info.mode) == (7, "-rw-r--r--", "user", 0o644)
    files.rename("work/a.txt", "work/b.txt")
    assert not files.exists("work/a.txt")
    files.remove("work/b.txt")
    with pytest.raises(e2b.FileNotFoundException):
        files.read("work/b.txt")
    with pytest.raises(InvalidArgumentException):
        files.list("work/deep/big.bin")

    wanted = [("a.txt", kind) for kind in (FilesystemEventType.CREATE, FilesystemEventType.CHMOD, FilesystemEventType.WRITE)]
    wanted += [("a.txt", FilesystemEventType.RENAME), ("b.txt", FilesystemEventType.CREATE), ("b.txt", FilesystemEventType.REMOVE)]
    seen: list[tuple[str, FilesystemEventType]] = []
    while ("b.txt", FilesystemEventType.REMOVE) not in seen:
        seen += [(event.name, event.type) for event in watch.get_new_events()]
    watch.stop()
    assert [event for event in seen if event[0] in ("a.txt", "b.txt")] == wanted


def test_directories_of_any_size_and_names_are_listed(box: Sandbox) -> None:
    program = "import os; os.mkdir('/tmp/many'); [os.close(os.open(b'/tmp/many/\\xfe%d' % number, os.O_CREAT)) for number in range(10_001)]"
    box.commands.run(f'python3 -c "{program}"')
    assert len(box.files.list("/tmp/many")) == 10_001


def test_files_are_sent_in_parts_or_not_at_all(box: Sandbox, server: Server) -> None:
    access = {"X-Access-Token": str(box._envd_access_token), "E2b-Sandbox-Id": box.sandbox_id}
    with httpx.Client(base_url=server.url, headers=access, timeout=GIVE_UP) as http:
        for name in ("one", "two"):
            box.files.write(f"parts/{name}", name)
        wanted = {"source_paths": ["parts/one", "parts/two"], "destination": "parts/whole"}
        assert http.post("/files/compose", json=wanted).json() == {"path": "/home/user/parts/whole", "name": "whole", "type": "file"}
        assert (box.files.read("parts/whole"), [entry.name for entry in box.files.list("parts")]) == ("onetwo", ["whole"])
        gone = http.post("/files/compose", json=wanted)
        assert (gone.status_code, gone.json()["message"]) == (404, "path '/home/user/parts/one' does not exist")
        twice = http.post("/files", files=[("file", ("parts/a", b"1")), ("file", ("parts/a", b"2"))])
        assert (twice.status_code, box.files.read("parts/a")) == (400, "1")
        assert "same path '/home/user/parts/a'" in twice.json()["message"]
        assert http.post("/files", params={"path": "x"}, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 400
        assert "does not match" in http.get("/files", params={"path": "x"}, headers={"X-Access-Token": "wrong"}).json()["message"]


def test_addresses_of_files_are_signed(box: Sandbox) -> None:
    files: Any = box.files  # its types are not complete
    files.write("signed.txt", "for all who have the address")
    address = box.download_url("signed.txt", use_signature_expiration=60)
    assert httpx.get(address).text == "for all who have the address"
    assert httpx.get(address, headers={"Range": "bytes=0-6"}).text == "for all"
    assert httpx.get(address.replace("signed.txt", "other.txt")).status_code != 200
    late = httpx.get(box.download_url("signed.txt", use_signature_expiration=-10))
    assert (late.status_code, late.json()["message"]) == (401, "signature is already expired")
    up = box.upload_url("sent.txt")
    assert httpx.post(up, files={"file": ("x", b"sent")}).status_code == 200
    assert box.files.read("sent.txt") == "sent"
    packed = httpx.post(up, content=gzip.compress(b"packed"), headers={"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"})
    assert packed.status_code == 200
    assert box.files.read("sent.txt") == "packed"


def test_a_terminal_is_opened_typed_into_and_resized(box: Sandbox) -> None:
    terminal = box.pty.create(PtySize(rows=24, cols=80), envs={"PS1": ""})
    box.pty.resize(terminal.pid, PtySize(rows=33, cols=99))
    box.pty.send_stdin(terminal.pid, b"stty size; echo $TERM; exit 3\n")
    seen: list[bytes] = []
    with pytest.raises(CommandExitException) as end:
        terminal.wait(on_pty=seen.append)
    assert end.value.exit_code == 3
    assert b"33 99" in b"".join(seen)
    assert b"xterm-256color" in b"".join(seen)


def test_metadata_stays_with_a_file_and_goes_into_snapshots(box: Sandbox, client: E2B) -> None:
    files: Any = box.files  # its types are not complete
    assert files.write("kept.txt", "x", metadata={"author": "mish", "kind": "a b"}).metadata == {"author": "mish", "kind": "a b"}
    assert files.rename("kept.txt", "moved.txt").metadata == {"author": "mish", "kind": "a b"}
    files.write("look.py", "import os\ntry: print(os.getxattr('moved.txt', 'user.e2b.author').decode())\nexcept OSError as error: print(error.errno)")
    assert box.commands.run("python3 look.py").stdout.strip() in ("mish", str(errno.EOPNOTSUPP)), "as programs see it, where the engine has attributes"
    files.write("plain.txt", "x", metadata={"old": "1"})
    files.write("plain.txt", "y")
    shown = {entry.name: entry.metadata for entry in files.list(".")}
    assert (shown["moved.txt"], shown["plain.txt"]) == ({"author": "mish", "kind": "a b"}, None)
    with pytest.raises(InvalidArgumentException, match="not on the sandbox's disk"):
        files.write("/tmp/nowhere.txt", "x", metadata={"a": "b"})

    snapshot = box.create_snapshot(name="with_words")
    assert [one.snapshot_id for one in client.Sandbox.list_snapshots(sandbox_id=box.sandbox_id).next_items()] == [snapshot.snapshot_id]
    copy = client.Sandbox.create("with_words")
    assert copy.files.get_info("moved.txt").metadata == {"author": "mish", "kind": "a b"}
    copy.kill()
    assert client.Sandbox.delete_snapshot(snapshot.snapshot_id)
    assert not client.Sandbox.delete_snapshot(snapshot.snapshot_id)


def test_a_snapshot_takes_a_name_from_another_and_leaves_what_stands_on_that(box: Sandbox, client: E2B) -> None:
    first = box.create_snapshot(name="again")
    child = client.Sandbox.create(first.snapshot_id)
    try:
        above = child.create_snapshot(name="above")
    finally:
        child.kill()
    box.files.write("/home/user/later", "later")
    box.create_snapshot(name="again")
    for name, there in (("again", True), (above.snapshot_id, False)):
        made = client.Sandbox.create(name)
        try:
            assert made.files.exists("/home/user/later") is there
        finally:
            made.kill()
        assert client.Sandbox.delete_snapshot(name)


def test_what_was_made_of_a_snapshot_outlives_it(box: Sandbox, client: E2B) -> None:
    box.files.write("/home/user/first", "kept")
    first = box.create_snapshot()
    child = client.Sandbox.create(first.snapshot_id)
    second = child.create_snapshot()
    child.kill()
    client.Template.build(client.Template().from_template(first.snapshot_id).run_cmd("true"), "e2b-of-a-snapshot")
    assert client.Sandbox.delete_snapshot(first.snapshot_id)
    with pytest.raises(e2b.SandboxException, match="not found"):
        client.Sandbox.create(first.snapshot_id)
    for made_of_it in (second.snapshot_id, "e2b-of-a-snapshot"):
        made = client.Sandbox.create(made_of_it)
        try:
            assert made.files.read("/home/user/first") == "kept"
        finally:
            made.kill()
    assert client.Sandbox.delete_snapshot(second.snapshot_id)


def test_ports_that_are_not_public_are_forbidden_without_the_token(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", network={"allow_public_traffic": False})
    box.commands.run("python3 -m http.server 8123", background=True)
    box.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8123) 2>/dev/null; do sleep 0.05; done")
    shown = httpx.get(f"{server.url}/v1/sandboxes/{box.sandbox_id}/previews/8123", headers={"Authorization": f"Bearer {server.key}"}).json()
    url = f"http://127.0.0.1:{httpx.URL(shown['url']).port}/"
    aimed = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "8123"}
    token = str(box.traffic_access_token)
    answers = [httpx.get(url, headers={**aimed, **more}, timeout=GIVE_UP).status_code for more in ({}, {"e2b-traffic-access-token": token})]
    assert answers == [403, 200]
    box.kill()


def at_the_edge(box: Sandbox, server: Server, port: int) -> httpx.Response:
    """What anybody is answered who asks for a port by its name."""
    host = box.get_host(port)
    return httpx.get(f"http://127.0.0.1:{host.rpartition(':')[2]}/", headers={"Host": host}, timeout=GIVE_UP)


def test_ports_say_what_e2b_s_do(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", timeout=600)
    closed = at_the_edge(box, server, 8124)
    assert closed.status_code == 502
    assert closed.json() == {"sandboxId": box.sandbox_id, "message": "The sandbox is running but port is not open", "port": 8124, "code": 502}
    box.commands.run("python3 -m http.server 8124", background=True)
    box.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8124) 2>/dev/null; do sleep 0.05; done")
    assert at_the_edge(box, server, 8124).status_code == 200
    gone = {"sandboxId": box.sandbox_id, "message": "The sandbox was not found", "code": 502}
    box.pause()
    sleeping = at_the_edge(box, server, 8124)
    assert (sleeping.status_code, sleeping.json(), box.get_info().state) == (502, gone, SandboxState.PAUSED)
    box.connect()
    assert at_the_edge(box, server, 8124).status_code == 200
    box.kill()
    ended = at_the_edge(box, server, 8124)
    assert (ended.status_code, ended.text) == (502, json.dumps(gone, separators=(",", ":")))


def test_a_port_wakes_a_sandbox_that_is_to_be(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", timeout=100, lifecycle={"on_timeout": "pause", "auto_resume": True})
    box.commands.run("python3 -m http.server 8125", background=True)
    box.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8125) 2>/dev/null; do sleep 0.05; done")
    box.pause()
    assert at_the_edge(box, server, 8125).status_code == 200
    found = box.get_info()
    assert found.state is SandboxState.RUNNING
    assert (found.end_at - datetime.now(UTC)).total_seconds() > 200, "for five minutes at least"
    box.kill()


def test_one_that_can_not_be_woken_says_why(server: Server) -> None:
    with closing(Api(server)) as admin:
        admin.ok("POST", "/v1/projects", status=201, json={"name": "e2b-full", "max_memory": 1000})
        key = admin.ok("POST", "/v1/keys", status=201, json={"name": "full", "project": "e2b-full"})["value"]
        client = E2B(api_key="e2b_" + key.removeprefix("ck_"), api_url=server.url, sandbox_url=server.url, request_timeout=GIVE_UP)
        sleeping = client.Sandbox.create("base", lifecycle={"on_timeout": "pause", "auto_resume": True})
        sleeping.files.write("kept", "kept")
        sleeping.pause()
        other = client.Sandbox.create("base")
        with pytest.raises(RateLimitException, match="1000 MiB"):
            sleeping.files.read("kept")
        other.kill()
        assert sleeping.files.read("kept") == "kept"
        sleeping.kill()
        admin.ok("DELETE", "/v1/projects/e2b-full", status=204)


def test_pages_of_a_browser_may_ask(client: E2B, box: Sandbox, server: Server) -> None:
    page = {"Origin": "https://page.example"}
    asking = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,e2b-sandbox-id,x-access-token"}
    inside = {"E2b-Sandbox-Id": box.sandbox_id, "X-Access-Token": str(box._envd_access_token)}
    with httpx.Client(base_url=server.url, timeout=GIVE_UP) as http:
        for path in ("/v2/sandboxes", "/process.Process/List", "/execute"):
            before = http.options(path, headers=asking)
            assert (before.status_code, before.headers["Access-Control-Allow-Origin"]) == (204, "*")
            assert "authorization" in before.headers["Access-Control-Allow-Headers"].lower()
            assert "DELETE" in before.headers["Access-Control-Allow-Methods"]
        listed = http.get("/v2/sandboxes", headers={**page, "X-API-Key": server.key})
        run = http.post("/process.Process/List", json={}, headers={**page, **inside})
        refused = http.get("/health", headers={**page, "E2b-Sandbox-Id": "sb-aaaaaaaaaaaaaaaa"})
        for answer, status in ((listed, 200), (run, 200), (refused, 502)):
            assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"], answer.headers["Access-Control-Expose-Headers"]) == (status, "*", "*")
        assert "Access-Control-Allow-Origin" not in http.get("/v1/sandboxes", headers=page).headers, "Corral's own API is not for pages of others"
        assert "Access-Control-Allow-Origin" not in http.options("/v1/sandboxes", headers={**asking, "Access-Control-Request-Headers": "authorization"}).headers


def test_a_create_that_is_repeated_makes_one_sandbox(client: E2B) -> None:
    one, same = (client.Sandbox.create("base", timeout=120, idempotency_key="once-only") for _ in range(2))
    assert one.sandbox_id == same.sandbox_id
    one.kill()


def test_a_snapshot_that_can_not_be_made_takes_no_name_away(box: Sandbox, client: E2B, server: Server) -> None:
    box.files.write("/home/user/first", "first")
    box.create_snapshot(name="kept-name")
    volume = client.Volume.create("in-the-way")
    other = client.Sandbox.create("base", volume_mounts={"/data": volume})
    snapshots, wanted = f"{server.url}/sandboxes/{other.sandbox_id}/snapshots", {"name": "kept-name", "memory": True}
    assert httpx.post(snapshots, json=wanted, headers={"X-API-Key": server.key}, timeout=GIVE_UP).status_code == 400, "its memory can't be kept"
    made = client.Sandbox.create("kept-name")
    assert made.files.exists("/home/user/first")
    made.kill()
    assert httpx.post(snapshots, json={**wanted, "memory": False}, headers={"X-API-Key": server.key}, timeout=GIVE_UP).status_code == 201
    made = client.Sandbox.create("kept-name")
    assert not made.files.exists("/home/user/first")
    made.kill()
    other.kill()
    client.Volume.destroy(volume.volume_id)
    assert client.Sandbox.delete_snapshot("kept-name")
    assert not client.Sandbox.delete_snapshot("kept-name")


def test_a_paused_sandbox_goes_on_where_it_was(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", timeout=300, lifecycle={"on_timeout": "pause", "auto_resume": True})
    counting = box.commands.run("n=0; while true; do echo $((n+=1)) > next; mv next count; sleep 0.1; done", background=True)
    box.commands.run("until test -s count; do sleep 0.05; done")
    assert box.pause()
    assert box.get_info().state is SandboxState.PAUSED
    assert box.sandbox_id in [one.sandbox_id for one in client.Sandbox.list(query=SandboxQuery(state=[SandboxState.PAUSED])).next_items()]
    assert counting.pid in [each.pid for each in box.commands.list()], "what is asked of it resumes it"
    assert box.pause()
    box.connect(timeout=60)
    assert box.get_info().state is SandboxState.RUNNING
    assert int(box.files.read("count")) > 0
    box.kill()
    lives = ["created", "paused", "resumed", "paused", "resumed", "killed"]
    told = httpx.get(f"{server.url}/events/sandboxes/{box.sandbox_id}", params={"orderAsc": "true", "limit": 100}, headers={"X-API-Key": server.key}).json()
    assert [event["type"].rpartition(".")[2] for event in told if event["type"] != "sandbox.lifecycle.updated"] == lives
    assert {(event["sandboxId"], event["sandboxTemplateId"]) for event in told} == {(box.sandbox_id, "base")}

    asleep = client.Sandbox.create("base", timeout=300)
    asleep.pause()
    assert not asleep.is_running(), "without auto_resume only connecting resumes it"
    assert client.Sandbox.connect(asleep.sandbox_id).is_running()
    asleep.kill()


def test_memory_is_left_behind_when_asked_for(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", timeout=120)
    box.files.write("kept", "on disk")
    box.commands.run("sleep 300", background=True)
    box.pause()
    with httpx.Client(base_url=server.url, headers={"X-API-Key": "e2b_" + server.key.removeprefix("ck_")}, timeout=GIVE_UP) as http:
        page = http.get("/v2/sandboxes", params={"state": "paused"})
        assert ("X-Total-Running" in page.headers, box.sandbox_id in page.text) == (False, True)
        assert http.get("/v2/sandboxes", params={"order": "upward"}).status_code == 400
        assert http.post(f"/v2/sandboxes/{box.sandbox_id}/connect", json={"memory": False}).status_code == 201
        assert (box.files.read("kept"), box.commands.list()) == ("on disk", [])
        name = {"templateID": "base", "autoPauseMemory": False}
        assert http.post("/v2/sandboxes", json=name).json()["message"] == "autoPauseMemory=false only applies when autoPause is true."
    box.kill()


def test_volumes_and_secrets_are_made_and_used(client: E2B) -> None:
    volume = client.Volume.create("shared-by-e2b")
    one = client.Sandbox.create("base", volume_mounts={"/data": volume})
    two = client.Sandbox.create("base", volume_mounts={"/data": volume.name})
    one.commands.run("echo both > /data/file", user="root")
    assert two.files.read("/data/file") == "both\n"
    with pytest.raises(InvalidArgumentException, match="network filesystem"):
        two.files.watch_dir("/data")
    two.commands.run("mkdir /data/mine", user="root")
    watch = two.files.watch_dir("/data/mine", allow_network_mounts=True)
    two.commands.run("touch /data/mine/new", user="root")
    while not (events := watch.get_new_events()):
        pass
    assert (events[0].name, events[0].type) == ("new", FilesystemEventType.CREATE)
    watch.stop()
    one.kill()
    two.kill()
    assert client.Volume.destroy(volume.volume_id)


def test_secrets_have_versions_and_metadata(client: E2B, server: Server) -> None:
    secret = client.Secret.create("OpenAI-api-key", "hush", metadata={"owner": "me"})
    assert (secret.name, secret.version, secret.metadata) == ("openai-api-key", 1, {"owner": "me"})
    assert client.Secret.update("openai-api-key", "hush hush").version == 2
    client.Secret.update(secret.secret_id, "hush", metadata={})
    found = client.Secret.get_info("OPENAI-API-KEY")
    assert (found.secret_id, found.version, found.metadata) == (secret.secret_id, 3, {})
    # Other tests' secrets are in the same project.
    assert "openai-api-key" in {each.name for each in client.Secret.list(limit=100).next_items()}
    rules = {"api.example.com": [{"transform": {"headers": {"Authorization": f"Bearer {client.Secret.fill('openai-api-key')}"}}}]}
    box = client.Sandbox.create("base", network={"rules": rules})
    box.kill()
    with closing(Api(server)) as api:
        # Rules mean names without upper case: those that the project has beside them are not theirs.
        native = api.ok("POST", "/v1/secrets", status=201, json={"name": "OPENAI-API-KEY", "value": "x"})
        assert client.Secret.update("OpenAI-API-key", "hush").version == 4
        assert client.Secret.get_info(native["id"]).version == 1
        assert client.Secret.destroy(native["id"])
    with pytest.raises(e2b.SecretException, match="ids of secrets"):
        client.Secret.create("sec_1", "x")
    with pytest.raises(e2b.SecretException, match="metadata"):
        client.Secret.create("other", "x", metadata={"k": "x" * 1025})
    assert client.Secret.destroy(secret.secret_id)


def test_files_of_a_volume_need_no_sandbox(client: E2B, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)
    volume = client.Volume.create("alone-by-e2b")
    assert volume.write_file("note", "by hand").size == 7
    made = volume.make_dir("/a/b", force=True, uid=1000, gid=1000, mode=0o750)
    assert (made.path, made.uid, made.mode) == ("/a/b", 1000, 0o750)
    volume.write_file("/a/b/large", b"x" * 3_000_000, uid=1000, mode=0o640)
    assert [entry.path for entry in volume.list("/", depth=9)] == ["/a", "/a/b", "/a/b/large", "/note"]
    assert b"".join(volume.read_file("/a/b/large", format="stream")) == b"x" * 3_000_000
    with client.Sandbox.create("base", volume_mounts={"/data": volume}) as box:
        box.commands.run("cat /data/note; ln -s /etc/passwd /data/out; ln -s / /data/root; mkfifo /data/pipe; echo both > /data/both")
        assert volume.read_file("both") == "both\n"
        volume.write_file("/both", "changed")
        assert box.files.read("/data/both") == "changed"
        assert volume.get_info("/out").target == "/etc/passwd"
        for path in ("/out", "/root/etc/passwd", "/pipe", "/../../etc/passwd", "/nothing"):
            with pytest.raises(e2b.VolumePathNotFoundException):
                volume.read_file(path)
        box.kill()
    assert volume.update_metadata("note", mode=0o600).mode == 0o600
    volume.remove("/a")
    assert not volume.exists("/a/b/large")
    with pytest.raises(e2b.AuthenticationException):
        e2b.Volume(volume.volume_id, volume.name, "another token").list("/")
    with closing(Api(server)) as api:
        reader = api.ok("POST", "/v1/keys", status=201, json={"name": "reader", "project": "default", "role": "reader"})
        told = httpx.get(f"{server.url}/volumes/{volume.volume_id}", headers={"X-API-Key": reader["value"]})
        api.ok("DELETE", f"/v1/keys/{reader['id']}", status=204)
    assert told.status_code == 403, "who may only look gets nothing that opens the volume for writing"
    assert client.Volume.destroy(volume.volume_id)


def test_the_network_is_as_it_was_last_asked_for(client: E2B, server: Server) -> None:
    box = client.Sandbox.create("base", network={"mask_request_host": "inside:${PORT}", "deny_out": ["203.0.113.0/24"]})
    box.update_network({"allow_out": ["203.0.113.7"], "deny_out": ["0.0.0.0/0"]})
    network = box.get_info().network or {}
    assert (network.get("allow_out"), network.get("deny_out"), network.get("mask_request_host")) == (["203.0.113.7"], ["0.0.0.0/0"], "inside:${PORT}")
    shown = httpx.get(f"{server.url}/v1/sandboxes/{box.sandbox_id}/previews/8123", headers={"Authorization": f"Bearer {server.key}"}).json()
    assert shown["host"] == "inside:8123"
    serve = "import http.server as h\nclass S(h.BaseHTTPRequestHandler):\n do_GET = lambda s: (s.send_response(200), s.end_headers(), s.wfile.write(s.headers['Host'].encode()))\nh.HTTPServer(('', 8123), S).serve_forever()"
    box.files.write("serve.py", serve)
    box.commands.run("python3 serve.py", background=True)
    box.commands.run("until (exec 3<>/dev/tcp/127.0.0.1/8123) 2>/dev/null; do sleep 0.1; done")
    named = httpx.get(shown["path_url"])
    assert (named.status_code, named.text) == (200, "inside:8123")
    box.kill()


def test_nobody_comes_in_without_the_key_or_token(client: E2B, box: Sandbox, server: Server) -> None:
    stranger = E2B(api_key="e2b_" + "0" * 40, api_url=server.url, sandbox_url=server.url)
    with pytest.raises(e2b.AuthenticationException):
        stranger.Sandbox.create("base")
    inside = {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983"}
    refused = httpx.post(server.url + "/process.Process/List", json={}, headers=inside)
    assert refused.status_code == 401
    assert httpx.get(server.url + "/files", params={"path": "/etc/passwd"}, headers=inside).status_code == 401
    assert httpx.get(server.url + "/health", headers=inside).status_code == 204
    gone = httpx.get(server.url + "/health", headers={**inside, "E2b-Sandbox-Id": "sb-aaaaaaaaaaaaaaaa"})
    assert (gone.status_code, gone.json()["message"]) == (502, "The sandbox was not found")
    named = httpx.get(server.url + "/health", headers={"Host": f"49983-{box.sandbox_id}.anything.test"})
    assert named.status_code == 204


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"templateID": "no-such-template"}, "not found"),
        ({"templateID": "base", "iam": {"tokens": {"a": {"audience": "x", "tokenType": "JWT-SVID"}}}}, "iam"),
        ({"templateID": "base", "network": {"egressProxy": {"address": "socks5://1.2.3.4"}}}, "SOCKS"),
        ({"templateID": "base", "network": {"denyOut": ["example.com"]}}, "invalid denied CIDR"),
        ({"templateID": "base", "network": {"allowOut": ["example.com"]}}, "deny out"),
        ({"templateID": "base", "network": {"httpsPorts": [8443]}}, "plain HTTP"),
        ({"templateID": "base", "network": {"maskRequestHost": "a b"}}, "no host name"),
        ({"templateID": "base", "autoResume": {"enabled": True}}, "autoPause"),
        ({"templateID": "base", "brandNew": True}, "no such field"),
    ],
)
def test_what_is_not_supported_is_refused_with_the_reason(server: Server, options: dict[str, object], reason: str) -> None:
    answer = httpx.post(server.url + "/v2/sandboxes", json=options, headers={"X-API-Key": server.key})
    assert answer.status_code in (400, 404)
    assert answer.json()["code"] == answer.status_code
    assert re.search(reason, answer.json()["message"])


def test_a_template_is_built_tagged_and_used(client: E2B) -> None:
    wanted = client.Template().from_template("base").run_cmd("echo made > made.txt").set_envs({"FLAVOR": "sweet"})
    built = client.Template.build(wanted, "e2b-made:one", cpu_count=1, memory_mb=256)
    assert client.Template.exists("e2b-made")
    assert client.Template.assign_tags("e2b-made:one", ["stable", "latest"]).tags == ["stable", "latest"]
    assert client.Template.exists("default/e2b-made:stable"), "with the project before it"
    assert {tag.tag for tag in client.Template.get_tags("default/e2b-made")} == {"one", "stable", "default"}
    box = client.Sandbox.create("e2b-made:stable")
    assert box.commands.run("cat made.txt; echo $FLAVOR").stdout == "made\nsweet\n"
    assert (box.get_info().memory_mb, box.get_info().template_id) == (256, built.template_id)
    box.kill()
    assert built.build_id
    assert not client.Template.exists("e2b-never-made")


@pytest.mark.parametrize("user", ["1234", "nobody:nogroup"])
def test_a_directory_is_made_for_whoever_works_in_it(client: E2B, user: str) -> None:
    wanted = client.Template().from_template("base").set_user(user).set_workdir("/srv/app/deep").run_cmd("touch here")
    client.Template.build(wanted, f"e2b-of-{user.partition(':')[0]}")


def test_a_build_that_fails_is_blamed_on_the_line_that_asked_for_it(client: E2B) -> None:
    wanted = client.Template().from_template("base").set_workdir("/made/for/it").run_cmd("true", user="root")
    wanted = wanted.run_cmd("exit 5")  # it is this one
    wanted = wanted.run_cmd("true")
    with pytest.raises(e2b.BuildException, match="ended with 5") as failed:
        client.Template.build(wanted, "e2b-broken")
    assert any("it is this one" in (frame.line or "") for frame in traceback.extract_tb(failed.value.__traceback__))
    with pytest.raises(e2b.BuildException) as failed:
        client.Template.build(client.Template().from_template("e2b-never-made").run_cmd("true"), "e2b-broken")


def test_templates_are_listed_in_pages(client: E2B, server: Server) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}, timeout=GIVE_UP) as http:
        client.Template.build(client.Template().from_template("base").set_envs({"A": "1"}), "e2b-page-one")
        client.Template.build(client.Template().from_template("base").set_envs({"A": "2"}), "e2b-page-two")
        names: list[str] = []
        token = None
        while names == [] or token is not None:
            page = http.get("/v2/templates", params={"limit": 1} if token is None else {"limit": 1, "nextToken": token})
            assert len(page.json()) <= 1
            names += [template["templateID"] for template in page.json()]
            token = page.headers.get("X-Next-Token")
        assert names == sorted(set(names))
        assert {"e2b-page-one", "e2b-page-two"} <= set(names)
        assert http.get("/teams").json()["code"] == 404, "what is not there is refused as E2B's API refuses"
