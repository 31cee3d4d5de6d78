"""Builds that don't go to their end in peace, what images start and when that is ready, and instructions of Dockerfiles that are rarely used."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from corral import Client, Image, Sandbox, Secret
from corral.errors import BuildFailed, Conflict, CorralError, DeadlineExceeded, InvalidArgument, Unsupported
from corral.schema.image import BuildLog
from harness.api import Api
from harness.server import Server


@pytest.fixture
def word(server: Server) -> str:
    """Nobody has built anything with it."""
    return uuid.uuid4().hex


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


def steps(image: Image) -> dict[str, list[int]]:
    """The numbers of those that a build does, and of those that it finds."""
    lines: list[BuildLog] = []
    image.build(on_log=lines.append)
    return {stream: [line.step for line in lines if line.stream == stream] for stream in ("step", "cached")}


def test_a_step_that_is_forced_is_done_each_time_and_what_comes_after_it_too(word: str) -> None:
    image = Image.named("tiny").run(f"echo {word}").run("head -c 16 /dev/urandom | md5sum > /drawn", force=True).run("cp /drawn /copy")
    seen = set[str]()
    for number in range(2):
        assert steps(image) == {"step": [1, 2, 3] if number == 0 else [2, 3], "cached": [] if number == 0 else [1]}
        with Sandbox.create(image.build().id) as box:
            assert box.files.read_text("/drawn") == box.files.read_text("/copy")
            seen.add(box.files.read_text("/drawn"))
    assert len(seen) == 2


def build_sandboxes(client: Client) -> list[str]:
    return [box.id for box in client.sandboxes.list() if "corral.build" in box.info.tags]


# Ends

LONG = [{"do": "run", "command": "echo begun; exec sleep 1000"}]


def test_a_build_that_is_cancelled_leaves_what_its_steps_made_and_nothing_else(api: Api, word: str) -> None:
    first = {"do": "run", "command": f"echo {word} > /one"}
    build = api.ok("POST", "/v1/images/builds", status=202, json={"definition": {"source": {"kind": "image", "ref": "tiny"}, "steps": [first, *LONG]}})
    raised: list[Exception] = []

    def join() -> None:
        try:
            Image.named("tiny").run(first["command"]).run(LONG[0]["command"]).build()
        except CorralError as error:
            raised.append(error)

    # Somebody else who wants the same is told too.
    other = threading.Thread(target=join)
    with api.events("GET", f"/v1/images/builds/{build['id']}/logs") as events:
        for event in events:
            if event.name == "log" and json.loads(event.data)["text"] == "begun\n":
                other.start()
                joined = api.ok(
                    "POST", "/v1/images/builds", status=202, json={"definition": {"source": {"kind": "image", "ref": "tiny"}, "steps": [first, *LONG]}}
                )
                assert joined["id"] == build["id"]
                ended = api.ok("DELETE", f"/v1/images/builds/{build['id']}")
                assert (ended["state"], ended["error"]["code"], ended["error"]["message"]) == ("failed", "conflict", "the build was cancelled")
            elif event.name == "end":
                assert json.loads(event.data)["state"] == "failed"
    other.join()
    with Client() as client:
        assert build_sandboxes(client) == []
    assert steps(Image.named("tiny").run(first["command"]))["step"] == []
    # Once it has ended there is nothing to end.
    assert api.ok("DELETE", f"/v1/images/builds/{build['id']}")["state"] == "failed"


BUILD = """
import sys
from corral import Image
image = Image.named("tiny").run(sys.argv[1]).run(sys.argv[2])
image.build(on_log=lambda line: print(line.step, line.stream, line.text, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_build_whose_client_is_gone_goes_on_and_is_joined_by_the_next(server: Server, word: str, how: signal.Signals) -> None:
    commands = (f"echo {word} > /one", f"echo half; sleep 2; echo {word} > /two")
    with subprocess.Popen([sys.executable, "-c", BUILD, *commands], env=server.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as client:
        assert client.stdout is not None
        assert any("half" in line for line in client.stdout)
        client.send_signal(how)
    lines: list[BuildLog] = []
    with Sandbox.create(Image.named("tiny").run(commands[0]).run(commands[1]).build(on_log=lines.append).id) as box:
        assert box.run("cat /one /two").stdout == f"{word}\n{word}\n"
    # Each step was done once: this is that build's own log, or everything was found.
    assert [line.step for line in lines if line.stream == "step"] in ([1, 2], [])


# Starts

READY = {
    "port": ("sleep 0.3; exec nc -l -p 8000", {"port": 8000}, "netstat -ltn | grep -c :8000"),
    "url": (
        "mkdir -p /w && echo hi > /w/index.html; sleep 0.3; exec httpd -f -p 8001 -h /w",
        {"url": "http://127.0.0.1:8001/"},
        "wget -qO- 127.0.0.1:8001 | grep -c hi",
    ),
    "file": ("sleep 0.3; touch '/a file'; exec sleep 1000", {"file": "/a file"}, "ls '/a file' | wc -l"),
    "process": ("sleep 0.3; exec nc -l -p 8002", {"process": "nc"}, "grep -lx nc /proc/[0-9]*/comm | wc -l"),
    "command": ("sleep 0.3; echo 1 > /n; exec sleep 1000", {"command": "test -s /n"}, "cat /n"),
    "seconds": ("echo 1 > /n; exec sleep 1000", {"seconds": 0.5}, "cat /n"),
    "nothing but its end": ("sleep 0.3; echo 1 > /n", {"file": "/n"}, "cat /n"),
}


@pytest.mark.parametrize("probe", READY)
def test_a_sandbox_is_there_when_what_it_starts_is_ready(server: Server, probe: str) -> None:
    command, ready, look = READY[probe]
    with Sandbox.create(Image.named("tiny").start(command, ready=ready)) as box:
        assert box.run(look).stdout == "1\n"


NEVER: Mapping[str, tuple[str, dict[str, Any], type[CorralError], str]] = {
    "it ends before": ("exit 3", {"port": 8000}, BuildFailed, "ended with 3"),
    "it ends well, and nothing listens": ("true", {"port": 8000}, BuildFailed, "ended with 0"),
    "a port that nobody opens": ("exec sleep 1000", {"port": 8000, "timeout": 0.5}, DeadlineExceeded, "not ready within 0.5 s"),
    "a file that is never there": ("exec sleep 1000", {"file": "/never", "timeout": 0.5}, DeadlineExceeded, "not ready within 0.5 s"),
    "an address that is refused": ("exec sleep 1000", {"url": "http://127.0.0.1:9/", "timeout": 0.5}, DeadlineExceeded, "not ready within 0.5 s"),
}


@pytest.mark.parametrize("what", NEVER)
def test_what_is_never_ready_is_no_sandbox(server: Server, what: str) -> None:
    command, ready, error, message = NEVER[what]
    built = Image.named("tiny").label(what=what.replace(" ", "-")).start(command, ready=ready).build()
    with Client() as client:
        with pytest.raises(error, match=message):
            client.sandboxes.create(built.id)
        assert [box.id for box in client.sandboxes.list() if box.info.image == built.id] == []


# Dockerfiles

REFUSED: Mapping[str, tuple[str, str]] = {
    "ADD of an address": ("ADD https://example.com/a.tar /a", "outside a sandbox.*|line 2"),
    "ADD of a repository": ("ADD git@example.com:a/b.git /b", "line 2"),
    "RUN --network": ("RUN --network=none true", "--network"),
    "RUN --security": ("RUN --security=insecure true", "--security"),
    "a mount that isn't there": ("RUN --mount=type=ssh true", "type=ssh"),
    "memory as a mount": ("RUN --mount=type=tmpfs,target=/m true", "type=tmpfs"),
    "a cache that is read-only": ("RUN --mount=type=cache,target=/c,ro true", "read-only"),
    "a cache of an image's files": ("RUN --mount=type=cache,target=/c,from=corral/tiny true", "can't begin"),
    "an option that mounts don't have": ("RUN --mount=type=bind,target=/m,sise=3 true", "sise"),
    "a flag of another instruction": ("RUN --chown=1 true", "--chown"),
    "a flag that COPY lacks": ("COPY --sudo a /a", "--sudo"),
    "a flag that ADD lacks": ("ADD --checksum=sha256:00 a /a", "--checksum"),
    "letters as a mode": ("COPY --chmod=u+x a /a", "--chmod=u\\+x"),
    "HEALTHCHECK of no kind": ("HEALTHCHECK curl x", "NONE or CMD"),
    "HEALTHCHECK with another flag": ("HEALTHCHECK --every=3s CMD true", "--every"),
    "HEALTHCHECK without a unit": ("HEALTHCHECK --interval=30 CMD true", "duration"),
    "ONBUILD of ONBUILD": ("ONBUILD ONBUILD RUN true", "ONBUILD"),
    "ONBUILD FROM": ("ONBUILD FROM corral/tiny", "FROM"),
    "SHELL without a list": ("SHELL /bin/sh -c", "JSON"),
    "EXPOSE of a word": ("EXPOSE web", "no port"),
    "an instruction that isn't one": ("INCLUDE other", "INCLUDE"),
    "another machine": ("FROM --platform=linux/s390x corral/tiny", "s390x"),
    "a heredoc without an end": ("RUN <<EOF\ntrue", "EOF"),
    "a variable that is needed": ('ARG NAME\nLABEL a="${NAME:?say who}"', "say who"),
    "COPY of what is not there": ("COPY missing /a", "missing"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_dockerfile_can_not_have_is_refused_before_anything_is_built(server: Server, what: str, tmp_path: Path) -> None:
    text, message = REFUSED[what]
    (tmp_path / "a").write_text("a")
    (tmp_path / "Dockerfile").write_text(f"FROM corral/tiny\n{text}\n")
    lines: list[BuildLog] = []
    with pytest.raises((InvalidArgument, Unsupported, BuildFailed, CorralError), match=message) as refused:
        Image.from_dockerfile(tmp_path / "Dockerfile").build(on_log=lines.append)
    assert refused.value.status < 500
    assert [line.text for line in lines if line.stream == "step"] == []


def test_what_is_recorded_is_kept_through_stages_archives_and_back(server: Server, word: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"""\
FROM corral/tiny
VOLUME /data /more
VOLUME ["/a b", "/c"]
STOPSIGNAL SIGQUIT
HEALTHCHECK --interval=1m30s --timeout=500ms --start-period=0s --retries=5 CMD ["test", "-e", "/{word}"]
ONBUILD RUN echo $WHO {word} > /triggered
ONBUILD COPY --chmod=600 given /given
MAINTAINER someone
""")
    lines: list[BuildLog] = []
    name = f"t-{word[:8]}"
    built = Image.from_dockerfile(tmp_path / "Dockerfile").build(on_log=lines.append, template=name)
    assert [line.text for line in lines if line.stream == "note"] == [
        f"line {line}: VOLUME is recorded; its files are on the sandbox's disk like all others, unless a volume is attached there" for line in (2, 3)
    ]
    with Client() as client:
        client.images.export(built.id, tmp_path / "image.tar")
    again = Image.from_archive(tmp_path / "image.tar").build(template=f"{name}-again")
    assert again.built
    # Only the next image is what ONBUILD is for, and nothing is left of it in that one.
    (tmp_path / "given").write_text("given")
    for base in (name, f"{name}-again"):
        (tmp_path / "Dockerfile").write_text(f"FROM {base}\nUSER root\nARG WHO=too-late\nENV AFTER={word}\n")
        child = Image.from_dockerfile(tmp_path / "Dockerfile").build(template=f"{name}-child")
        with Sandbox.create(child.id) as box:
            assert box.run("cat /triggered; stat -c %a /given; echo $AFTER").stdout == f"{word}\n600\n{word}\n"
        (tmp_path / "Dockerfile").write_text(f"FROM {name}-child\nRUN rm /triggered\n")
        with Sandbox.create(Image.from_dockerfile(tmp_path / "Dockerfile")) as box:
            assert not box.files.exists("/triggered")


def test_caches_belong_to_who_uses_them_and_hide_nothing_of_the_image(server: Server, word: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"""\
FROM corral/tiny
RUN echo someone:x:1500:1500::/home/someone:/bin/sh >> /etc/passwd && echo someone:x:1500: >> /etc/group && mkdir -p /home/someone && chown 1500 /home/someone
USER someone
WORKDIR /made/by/workdir
RUN --mount=type=cache,target=/home/someone/.cache,id=u{word[:8]},uid=1500,sharing=locked pwd > /home/someone/pwd && echo {word} > /home/someone/.cache/kept
RUN --mount=type=cache,target=/elsewhere,id=u{word[:8]} cat /elsewhere/kept > /home/someone/seen
""")
    lines: list[BuildLog] = []
    with Sandbox.create(Image.from_dockerfile(tmp_path / "Dockerfile").build(on_log=lines.append).id) as box:
        assert box.run("cd /home/someone && cat pwd seen; ls -A .cache; cd - && stat -c %u .").stdout == f"/made/by/workdir\n{word}\n/made/by/workdir\n1500\n"
    notes = " ".join(line.text for line in lines if line.stream == "note")
    assert "sharing=locked" in notes
    assert "uid, gid and mode" in notes


def test_a_secret_that_is_not_there_is_said(server: Server, word: str) -> None:
    with pytest.raises((BuildFailed, CorralError), match=f"S_{word[:8]}"):
        Image.named("tiny").run(f"echo {word}", secrets=[Secret.named(f"S_{word[:8]}")]).build()


def test_a_template_can_not_have_a_snapshots_name(server: Server, word: str) -> None:
    name = f"s-{word[:8]}"
    with Client() as client, client.sandboxes.create("tiny") as box:
        snapshot = box.snapshot(name)
        with pytest.raises(Conflict):
            client.templates.set(name, "tiny")
        snapshot.delete()


# What results are found by, and what strangers' steps may cost


def test_another_file_of_a_stage_is_another_step(server: Server, word: str, tmp_path: Path) -> None:
    for source in ("one", "two"):
        (tmp_path / "Dockerfile").write_text(f"""\
FROM corral/tiny AS made
RUN mkdir /made && echo {word} > /made/one && echo other > /made/two
FROM corral/tiny
RUN --mount=type=bind,from=made,source=/made/{source},target=/mnt/file cat /mnt/file > /seen
""")
        with Sandbox.create(Image.from_dockerfile(tmp_path / "Dockerfile")) as box:
            assert box.run("cat /seen").stdout == (f"{word}\n" if source == "one" else "other\n")


def test_a_build_argument_counts_from_where_it_is_declared(server: Server, word: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM corral/tiny\nRUN echo {word}\nARG WHO=nobody\nRUN echo $WHO > /who\n")
    done = [steps(Image.from_dockerfile(tmp_path / "Dockerfile", args=args)) for args in ({}, {"WHO": "someone"}, {"WHO": "nobody"})]
    assert [one["step"] for one in done] == [[1, 2], [2], []]


def test_files_that_are_larger_than_the_disk_are_not_fetched(server: Server, word: str, tmp_path: Path) -> None:
    """A sparse file takes no room in its sandbox, and would take all of the node's outside."""
    (tmp_path / "Dockerfile").write_text(f"""\
FROM corral/tiny AS made
RUN mkdir /made && echo {word} > /made/one && truncate -s 100G /made/sparse
FROM corral/tiny
COPY --from=made /made /given
""")
    with pytest.raises(BuildFailed, match="more than the 64 MiB that a build may write"):
        Image.from_dockerfile(tmp_path / "Dockerfile").build(disk=64)
    assert not list((server.home / "builds").iterdir())


def test_pruning_takes_nothing_from_a_build_that_is_under_way(server: Server, word: str) -> None:
    image = (
        Image.named("tiny")
        .run(f"echo {word} > /one")
        .run("echo two > /two")
        .run(f"echo waits; while ! test -e /{word}; do sleep 0.1; done; cat /one /two > /three")
    )
    waits = threading.Event()
    built: list[str] = []

    def note(line: BuildLog) -> None:
        if line.stream == "stdout" and "waits" in line.text:
            waits.set()

    thread = threading.Thread(target=lambda: built.append(image.build(on_log=note).id))
    thread.start()
    assert waits.wait(60)
    with Client() as client:
        client.images.prune(images=True)
        (box,) = [client.sandboxes.get(id) for id in build_sandboxes(client)]
        box.files.write(f"/{word}", b"")
        thread.join()
        with client.sandboxes.create(built[0]) as made:
            assert made.run("cat /three").stdout == f"{word}\ntwo\n"
    with Sandbox.create(image.run("cat /three > /four")) as after:
        assert after.files.read_text("/four") == f"{word}\ntwo\n"
