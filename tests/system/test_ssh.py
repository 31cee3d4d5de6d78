"""SSH with the clients that everybody has: ssh, sftp, scp, rsync."""

from __future__ import annotations

import fcntl
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from corral import Client, Sandbox
from corral.errors import Conflict, InvalidArgument
from corral.schema.account import Role
from harness import web
from harness.server import Server, free_port

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None or shutil.which("sftp") is None, reason="the programs of openssh-client are missing")
TIMEOUT = 90


@dataclass
class Here:
    """Our end: a key, what is known of the server, and a sandbox to log in to."""

    directory: Path
    box: Sandbox
    options: list[str] = field(default_factory=list[str])

    def know(self) -> None:
        access = self.box.ssh()
        known = self.directory / "known_hosts"
        known.write_text(f"[{access.host}]:{access.port} {access.host_key}\n")
        for option in (
            f"UserKnownHostsFile={known}",
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            f"Port={access.port}",
            "IdentitiesOnly=yes",
        ):
            self.options += ["-o", option]

    @property
    def key(self) -> list[str]:
        return [*self.options, "-F", "none", "-o", f"IdentityFile={self.directory / 'id'}", "-o", "BatchMode=yes"]

    def at(self, user: str | None = None) -> str:
        return f"{self.box.id}{'' if user is None else '+' + user}@127.0.0.1"

    def ssh(self, *words: str, user: str | None = None, input: bytes = b"", options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["ssh", *self.key, *options, self.at(user), *words], input=input, capture_output=True, timeout=TIMEOUT, check=False)

    def with_password(self, password: str, sandbox: str | None = None) -> subprocess.CompletedProcess[bytes]:
        asks = self.directory / "askpass"
        asks.write_text(f"#!/bin/sh\necho '{password}'\n")
        asks.chmod(0o700)
        words = [
            "-F",
            "none",
            *self.options,
            "-o",
            "PubkeyAuthentication=no",
            "-o",
            "NumberOfPasswordPrompts=1",
            f"{sandbox or self.box.id}@127.0.0.1",
            "echo in",
        ]
        env = {**os.environ, "SSH_ASKPASS": str(asks), "SSH_ASKPASS_REQUIRE": "force", "DISPLAY": "none"}
        return subprocess.run(["ssh", *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT, check=False)

    def sftp(self, *lines: str, user: str | None = None) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["sftp", *self.key, "-b", "-", self.at(user)], input="\n".join(lines).encode(), capture_output=True, timeout=TIMEOUT, check=False)


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(url=server.url, key=server.key) as client:
        yield client


@pytest.fixture
def here(client: Client, tmp_path: Path) -> Iterator[Here]:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "id"], check=True)
    key = client.keys.create("ssh", public_key=(tmp_path / "id.pub").read_text())
    with client.sandboxes.create("base") as box:
        made = Here(tmp_path, box)
        made.know()
        yield made
    if any(one.id == key.id for one in client.keys.list()):
        client.keys.delete(key.id)


def test_commands_have_their_streams_codes_users_and_variables(here: Here) -> None:
    done = here.ssh("cat; echo to stderr >&2; pwd; echo $GREETING; exit 7", input=b"in\n", options=("-o", "SetEnv=GREETING=hello"))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"in\n/home/user\nhello\n", b"to stderr\n")
    assert here.ssh("id -un", user="root").stdout == b"root\n"
    assert here.ssh("true", user="nobody-there").returncode == 126
    # As everywhere, the client says 255 for what a signal has ended.
    assert here.ssh("kill -9 $$").returncode == 255
    big = os.urandom(3_000_000)
    assert here.ssh("cat", input=big).stdout == big
    # What was begun in the background lives on.
    here.ssh("setsid sleep 1000 >/dev/null 2>&1 </dev/null &")
    assert here.ssh("pgrep -fc 'sleep 100[0]'").stdout.strip() == b"1"


def test_a_shell_on_a_terminal_follows_its_size_and_keys(here: Here) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))

    def controlled() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(["ssh", "-tt", *here.key, here.at()], stdin=theirs, stdout=theirs, stderr=theirs, preexec_fn=controlled)  # noqa: PLW1509 - no other thread runs
    os.close(theirs)
    try:
        os.write(ours, b"PS1=; stty -echo; echo si''ze $(stty size); echo te''rm $TERM\n")
        told = until(ours, b"term ")
        assert b"size 30 100" in told
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 41, 123, 0, 0))
        # The shell is told by a signal, which interrupts nothing here: ask until it has come.
        os.write(ours, b"until [ \"$(stty size)\" = '41 123' ]; do sleep 0.1; done; echo re''sized\n")
        until(ours, b"resized\r\n")
        # What is to be interrupted says itself that it is there: a shell that is just about to start it would take the key.
        os.write(ours, b"sh -c 'echo sle\"\"eps; exec sleep 1000'\n")
        until(ours, b"sleeps\r\n")
        os.write(ours, b"\x03")
        os.write(ours, b"echo inter''rupted $?\n")
        until(ours, b"interrupted 130")
        os.write(ours, b"exit 5\n")
        while True:
            try:
                if not os.read(ours, 4096):
                    break
            except OSError:
                break
        assert process.wait(timeout=TIMEOUT) == 5
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def until(descriptor: int, text: bytes) -> bytes:
    told = b""
    while text not in told:
        told += os.read(descriptor, 4096)
    return told


def test_sftp_needs_nothing_of_the_image(here: Here, client: Client) -> None:
    sent, back = here.directory / "sent", here.directory / "back"
    sent.write_bytes(os.urandom(2_000_001))
    sent.chmod(0o640)
    os.utime(sent, (1_000_000_000, 1_000_000_000))
    done = here.sftp(f"put -p {sent} a", "mkdir d", "rename a d/b", "ln -s d/b l", f"get -p l {back}", "ls -l d", "df", "rm l")
    assert done.returncode == 0, done.stderr
    assert back.read_bytes() == sent.read_bytes()
    assert (back.stat().st_mode & 0o777, back.stat().st_mtime) == (0o640, 1_000_000_000)
    assert b"-rw-r-----" in done.stdout
    assert b"2000001 Sep  9  2001" in done.stdout
    denied = here.sftp("put /etc/hostname /etc/hostname-2")
    assert denied.returncode == 1
    assert b"Permission denied" in denied.stderr
    assert here.sftp("put /etc/hostname /etc/hostname-2", user="root").returncode == 0
    assert here.box.files.exists("/etc/hostname-2")
    copied = subprocess.run(["scp", *here.key, "-r", f"{here.at()}:d", here.directory / "tree"], capture_output=True, timeout=TIMEOUT, check=False)
    assert copied.returncode == 0, copied.stderr
    assert (here.directory / "tree" / "b").read_bytes() == sent.read_bytes()
    with client.sandboxes.create("tiny") as tiny:
        small = Here(here.directory, tiny, here.options)
        assert small.sftp(f"put {sent} /tmp/x", f"get /tmp/x {back}").returncode == 0
        assert back.read_bytes() == sent.read_bytes()


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is missing")
def test_rsync_where_the_sandbox_has_it(here: Here) -> None:
    # The image has none, so it gets ours, with its libraries.
    rsync = shutil.which("rsync")
    assert rsync is not None
    listed = subprocess.run(["ldd", rsync], capture_output=True, text=True, check=True).stdout
    libraries = {word for word in listed.split() if word.startswith("/")}
    for path in {rsync, *libraries}:
        here.box.files.upload(path, f"/opt/rsync/{Path(path).name}", user="root")
    loader = next(Path(path).name for path in libraries if Path(path).name.startswith("ld-"))
    here.box.run("chmod -R a+rx /opt/rsync", user="root").check()
    tree = here.directory / "tree"
    (tree / "sub").mkdir(parents=True)
    for number in range(50):
        (tree / "sub" / f"{number}").write_bytes(os.urandom(10_000))
    there = f"/opt/rsync/{loader} --library-path /opt/rsync /opt/rsync/rsync"
    ways = ["rsync", "-a", "--stats", "-e", " ".join(["ssh", *here.key]), "--rsync-path", there]
    done = subprocess.run([*ways, f"{tree}/", f"{here.at()}:tree/"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    (tree / "sub" / "7").write_bytes(b"changed")
    done = subprocess.run([*ways, f"{tree}/", f"{here.at()}:tree/"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert "Number of regular files transferred: 1\n" in done.stdout
    done = subprocess.run([*ways, f"{here.at()}:tree/", f"{here.directory / 'back'}/"], capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert done.returncode == 0, done.stderr
    assert subprocess.run(["diff", "-r", tree, here.directory / "back"], check=False).returncode == 0


def test_ports_of_the_sandbox_are_forwarded_and_nothing_else(here: Here) -> None:
    with here.box.exec("python3", "-c", web.SERVER, here.box.id, "8000") as process:
        assert process.stdout.readline() == "listening\n"
        local = free_port()
        forwarding = subprocess.Popen(
            ["ssh", *here.key, "-o", "ExitOnForwardFailure=yes", "-L", f"{local}:localhost:8000", here.at(), "echo on; cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert forwarding.stdout is not None
            assert forwarding.stdout.readline() == b"on\n"
            answers: list[int] = []

            def ask() -> None:
                with web.wire(local) as line:
                    answers.append(line.ask("POST", "/", "localhost", body=b"x" * 300_000).json["size"])

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert answers == [300_000] * 8
        finally:
            forwarding.kill()
            forwarding.communicate()
    closed = here.ssh(options=("-W", "127.0.0.1:9"))
    assert closed.returncode == 255
    assert b"nothing listens on port 9" in closed.stderr
    elsewhere = here.ssh(options=("-W", "example.com:80"))
    assert b"only the sandbox's own ports" in elsewhere.stderr
    reverse = here.ssh("true", options=("-o", "ExitOnForwardFailure=yes", "-R", "9000:localhost:80"))
    assert reverse.returncode == 255
    assert b"forwarding failed" in reverse.stderr


INSTALL = """
mkdir -p ~/.editor && cat >~/.editor/server.py <<'EOF'
%s
EOF
if ! kill -0 $(cat ~/.editor/pid 2>/dev/null) 2>/dev/null; then
    nohup setsid python3 ~/.editor/server.py editor 43210 >~/.editor/log 2>&1 </dev/null &
    echo $! >~/.editor/pid
fi
until grep -q listening ~/.editor/log 2>/dev/null; do sleep 0.05; done
echo "listeningOn==43210=="
"""


def test_an_editor_of_another_machine_installs_its_server_and_finds_it_again(here: Here) -> None:
    """What Visual Studio Code's Remote-SSH does: a script on the input of a shell that starts a server which outlives it, reached through a SOCKS proxy of ssh, again and again."""
    peers: list[int] = []
    for _ in range(2):
        local = free_port()
        with subprocess.Popen(
            ["ssh", "-T", "-D", str(local), "-o", "ExitOnForwardFailure=yes", *here.key, here.at(), "sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as session:
            try:
                assert session.stdin is not None
                assert session.stdout is not None
                session.stdin.write((INSTALL % web.SERVER).encode())
                session.stdin.flush()
                assert session.stdout.readline() == b"listeningOn==43210==\n"
                with web.wire(local) as line:
                    line.say(b"\x05\x01\x00")
                    assert line.some(2) == b"\x05\x00"
                    line.say(b"\x05\x01\x00\x03\x09127.0.0.1" + (43210).to_bytes(2, "big"))
                    assert line.some(10)[:2] == b"\x05\x00"
                    assert line.ask("GET", "/", "localhost", "Connection: Upgrade", "Upgrade: websocket").status == 101
                    line.say(b"hello")
                    assert line.some(5) == b"hello"
                peers.append(int(here.ssh("cat .editor/pid").stdout))
            finally:
                session.kill()
                session.communicate()
    assert peers[0] == peers[1], "the server ended with the session that had started it"


def test_who_may_come_in(here: Here, client: Client, server: Server) -> None:
    reader = client.keys.create("reader", role=Role.READER)
    elsewhere = client.projects.create(f"p-{uuid.uuid4().hex[:12]}").name
    stranger = client.keys.create("stranger", project=elsewhere)
    member = client.keys.create("member")
    with client.sandboxes.create("tiny", name="other-box") as other:
        token = here.box.ssh().token
        assert here.with_password(token, other.id).returncode == 255, "a token opens one sandbox"
        token = here.box.ssh().token
        assert here.with_password(token).stdout == b"in\n"
        assert here.with_password(token).returncode == 255, "a token is good for one login"
        assert here.with_password(member.value).stdout == b"in\n"
        assert here.with_password(member.value, "other-box").stdout == b"in\n"
        assert here.with_password(server.key).stdout == b"in\n"
        for refused in (reader.value, stranger.value, "ck_" + "0" * 40, "cl_" + member.id + "." + "0" * 64, ""):
            done = here.with_password(refused)
            assert (done.returncode, b"Permission denied" in done.stderr) == (255, True), refused
        assert here.with_password(member.value, "sb-aaaaaaaaaaaaaaaa").returncode == 255
    public = (here.directory / "id.pub").read_text()
    with pytest.raises(Conflict):
        client.keys.create("again", public_key=public)
    with pytest.raises(InvalidArgument):
        client.keys.create("wrong", public_key="ssh-ed25519 AAAA")
    assert here.ssh("echo in").stdout == b"in\n"
    for key in client.keys.list():
        if key.public_key is not None or key.id in (reader.id, stranger.id, member.id):
            client.keys.delete(key.id)
    assert here.ssh("echo in").returncode == 255, "a revoked key opens nothing"
    client.projects.delete(elsewhere)
    logins = [event.actor for event in here.box.events(kind="ssh.login")]
    assert member.id in logins


def test_sessions_outlive_the_server_and_processes_hear_of_their_end(here: Here, server: Server) -> None:
    process = subprocess.Popen(["ssh", *here.key, here.at(), "echo on; cat; sleep 1000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        server.kill()
        server.start()
        process.stdin.write(b"through another server\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"through another server\n"
    finally:
        process.kill()
        process.communicate()
    [ours] = [one for one in here.box.processes() if "sleep 1000" in one.argv[-1]]
    here.box.process(ours.id).wait(timeout=TIMEOUT)
    assert here.ssh("echo again").stdout == b"again\n"


def test_corral_ssh_brings_its_own_password(here: Here, server: Server) -> None:
    def corral(*words: str, input: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "corral", "ssh", *words], env=server.env, input=input, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )

    done = corral(here.box.id, "cat; exit 3", input="words")
    assert (done.returncode, done.stdout) == (3, "words"), done.stderr
    assert corral("--user", "root", here.box.id, "id -un").stdout == "root\n"
    told = corral("--config", here.box.id).stdout
    (here.directory / "config").write_text(told)
    words = ["ssh", "-F", here.directory / "config", "-i", here.directory / "id", "-o", "BatchMode=yes", here.box.id, "echo by config"]
    assert subprocess.run(words, capture_output=True, timeout=TIMEOUT, check=False).stdout == b"by config\n"


def test_what_is_no_ssh_holds_nobody_up(here: Here) -> None:
    access = here.box.ssh()
    with (
        socket.create_connection((access.host, access.port), timeout=TIMEOUT) as silent,
        socket.create_connection((access.host, access.port), timeout=TIMEOUT) as noise,
    ):
        noise.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + bytes(100_000))
        assert here.ssh("echo in").stdout == b"in\n"
        silent.close()
