"""The command line against the real server: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.server import Server

Corral = Callable[..., "subprocess.CompletedProcess[str]"]
TIMEOUT = 60


@pytest.fixture
def corral(server: Server) -> Corral:
    def run(*words: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        stdin: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        return subprocess.run([sys.executable, "-m", "corral", *words], env=server.env, capture_output=True, text=True, timeout=TIMEOUT, check=False, **stdin)

    return run


@pytest.fixture
def box(corral: Corral) -> Iterator[str]:
    name = f"cli-{uuid.uuid4().hex[:10]}"
    assert corral("create", "--image", "tiny", "--name", name, "--tag", f"cli={name}").returncode == 0
    yield name
    corral("rm", name)


def loaded(done: subprocess.CompletedProcess[str]) -> Any:
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_sandbox_from_create_to_rm(corral: Corral) -> None:
    name = f"cli-{uuid.uuid4().hex[:10]}"
    made = loaded(corral("create", "--image", "tiny", "--name", name, "--tag", f"cli={name}", "--memory", "128", "--env", "A=1", "--timeout", "0", "--json"))
    assert (made["name"], made["memory"], made["env"], made["timeout"], made["state"]) == (name, 128, {"A": "1"}, None, "running")
    assert [one["id"] for one in loaded(corral("ls", "--tag", f"cli={name}", "--json"))] == [made["id"]]
    assert corral("ls", "-q", "--tag", f"cli={name}").stdout == made["id"] + "\n"
    assert made["id"] in corral("ls").stdout
    assert loaded(corral("inspect", name, "--json"))["use"]["memory_limit"] == 128
    assert loaded(corral("extend", name, "600", "--json"))["deadline"] is None
    assert corral("stop", name).stdout == made["id"] + "\n"
    assert loaded(corral("inspect", name, "--json"))["use"] is None
    assert corral("start", name).returncode == 0
    assert loaded(corral("rm", name, "--json")) == [made["id"]]
    assert loaded(corral("ls", "--tag", f"cli={name}", "--json")) == []


def test_exec_passes_output_input_and_the_exit_code(corral: Corral, box: str) -> None:
    done = corral("exec", box, "--", "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 5)
    assert corral("exec", box, "cat", input="hello").stdout == "hello"
    assert corral("exec", "-e", "A=x", "-w", "/tmp", box, "--", "sh", "-c", "echo $A; pwd").stdout == "x\n/tmp\n"
    assert corral("exec", "--timeout", "0.2", box, "sleep", "60").returncode == 137


def test_a_process_in_the_background_is_listed_and_read_later(corral: Corral, box: str) -> None:
    process = loaded(corral("exec", "-d", "--json", box, "--", "sh", "-c", "echo out; echo err >&2"))["id"]
    done = corral("logs", "-f", box, process)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 0)
    (listed,) = loaded(corral("ps", box, "--json"))
    assert (listed["id"], listed["exit_code"], listed["running"]) == (process, 0, False)
    assert process in corral("ps", box).stdout
    assert isinstance(loaded(corral("logs", box, "--json")), list)


def test_signals_are_passed_on(server: Server, box: str) -> None:
    words = ["exec", box, "--", "sh", "-c", "trap 'echo got; exit 9' TERM; echo ready; while :; do sleep 0.05; done"]
    with subprocess.Popen([sys.executable, "-m", "corral", *words], env=server.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"got\n"
        assert process.wait(timeout=TIMEOUT) == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_run_leaves_nothing_when_it_is_ended(server: Server, corral: Corral, number: signal.Signals) -> None:
    tag = uuid.uuid4().hex
    words = ["run", "--image", "tiny", "--tag", f"cli={tag}", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen([sys.executable, "-m", "corral", *words], env=server.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(timeout=TIMEOUT) == 128 + number
    assert loaded(corral("ls", "--tag", f"cli={tag}", "--json")) == []


def test_run_tells_where_the_time_went_and_gives_json(corral: Corral) -> None:
    assert "create" in corral("run", "-v", "--image", "tiny", "--", "true").stderr
    done = corral("run", "--json", "--image", "tiny", "--", "sh", "-c", "cat; exit 3", input="in")
    told = json.loads(done.stdout)
    assert (done.returncode, told["exit_code"], told["stdout"]) == (3, 3, "in")


def test_run_ends_when_its_reader_goes(server: Server, corral: Corral) -> None:
    tag = uuid.uuid4().hex
    line = f"{sys.executable} -m corral run --image tiny --tag cli={tag} -- yes | head -n 2"
    done = subprocess.run(["sh", "-c", line], env=server.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (done.stdout, done.stderr) == ("y\ny\n", "")
    assert loaded(corral("ls", "--tag", f"cli={tag}", "--json")) == []


def test_files_go_in_and_come_out(corral: Corral, box: str, tmp_path: Path) -> None:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "f").write_text("deep")
    (tmp_path / "one").write_text("one")
    assert corral("cp", str(tmp_path / "tree"), f"{box}:/tmp/tree").returncode == 0
    assert corral("cp", str(tmp_path / "one"), f"{box}:/tmp").returncode == 0
    assert corral("cp", "-", f"{box}:/tmp/two", input="two").returncode == 0
    assert corral("exec", box, "cat", "/tmp/tree/sub/f", "/tmp/one", "/tmp/two").stdout == "deeponetwo"
    assert corral("cp", f"{box}:/tmp/one", "-").stdout == "one"
    assert corral("cp", f"{box}:/tmp/tree", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "sub" / "f").read_text() == "deep"
    missing = corral("cp", f"{box}:/no/such", str(tmp_path))
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)


def test_events_are_told(corral: Corral, box: str) -> None:
    lines = [json.loads(line) for line in corral("events", "--sandbox", box, "--json").stdout.splitlines()]
    assert lines[0]["kind"] == "sandbox.created"
    assert corral("events", "--sandbox", box, "--after", str(lines[-1]["seq"])).stdout == ""


def test_webhooks_are_made_listed_and_removed(corral: Corral) -> None:
    made = loaded(corral("webhook", "create", "https://example.com/hook", "--kind", "sandbox.created", "--tag", "never=this", "--json"))
    assert (made["kinds"], made["tags"], made["secret"].startswith("whsec_")) == (["sandbox.created"], {"never": "this"}, True)
    shown = corral("webhook", "ls").stdout
    assert made["id"] in shown
    assert "whsec_" not in shown
    wrong = corral("webhook", "create", "http://example.com/hook")
    assert (wrong.returncode, "https" in wrong.stderr) == (1, True)
    assert corral("webhook", "rm", made["id"]).returncode == 0
    assert made["id"] not in corral("webhook", "ls").stdout


def test_keys_projects_and_images(corral: Corral) -> None:
    project = f"cli-{uuid.uuid4().hex[:10]}"
    assert loaded(corral("project", "create", project, "--max-sandboxes", "3", "--json"))["max_sandboxes"] == 3
    assert project in corral("project", "ls").stdout
    assert corral("project", "rm", project).returncode == 0
    key = loaded(corral("key", "create", "a test's", "--json"))
    assert key["value"].startswith("ck_")
    assert key["id"] in corral("key", "ls").stdout
    assert corral("key", "rm", key["id"]).returncode == 0
    assert "tiny" in [one["name"] for one in loaded(corral("image", "ls", "--json"))]


def test_a_policy_from_the_command_line(corral: Corral, box: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps({"rules": [{"to": ["*.example.com"], "action": "deny"}]}))
    assert loaded(corral("egress", "set", box, f"@{file}", "--json"))["rules"][0]["to"] == ["*.example.com"]
    shown = corral("egress", "show", box).stdout
    assert '"action": "deny"' in shown
    assert corral("egress", "set", box, "@-", input=shown[: shown.rindex("}") + 1]).returncode == 0
    assert loaded(corral("egress", "show", box, "--json"))["policy"]["rules"][0]["action"] == "deny"
    assert corral("egress", "learn", box, "--apply").returncode == 2
    assert corral("egress", "set", box, "none").returncode == 0
    made = loaded(corral("create", "--image", "tiny", "--egress", f"@{file}", "--json"))
    assert made["egress"]["rules"][0]["to"] == ["*.example.com"]
    corral("rm", made["id"])
    assert loaded(corral("approvals", "--json")) == []
    done = corral("approve", "ap-none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_secrets_come_from_standard_input_or_the_environment(server: Server, corral: Corral) -> None:
    name = f"CLI_{uuid.uuid4().hex[:10]}"
    done = corral("secret", "create", name, input="first\n")
    assert (done.stdout, done.stderr, done.returncode) == (name + "\n", "", 0)
    assert name in corral("secret", "ls").stdout
    done = corral("secret", "create", name, "--from-env", "HOME")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert corral("secret", "create", name, "--replace", "--from-env", "HOME").returncode == 0
    warned = corral("secret", "create", name, "--replace", "--value", "third", "--json")
    assert "standard input" in warned.stderr
    assert json.loads(warned.stdout)["name"] == name
    assert corral("secret", "create", name, "--from-env", "NO_SUCH_VARIABLE").returncode == 2
    assert corral("secret", "rm", name).returncode == 0
    assert name not in [one["name"] for one in loaded(corral("secret", "ls", "--json"))]


def test_errors_are_one_line(corral: Corral) -> None:
    for words in (
        ["inspect", "no-such-box"],
        ["exec", "no-such-box", "true"],
        ["run", "--image", "no-such-image", "--", "true"],
        ["run", "--image", "tiny", "--", "no-such-program"],
    ):
        done = corral(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("corral: ")
        assert done.stderr.count("\n") == 1


def test_a_shell_on_a_terminal(server: Server, box: str) -> None:
    text, status = on_terminal(server, ["shell", box], b"stty size; tty; exit 6\r")
    assert "/dev/pts/" in text
    assert "31 77" in text
    assert status == 6


def test_run_with_a_terminal(server: Server) -> None:
    text, status = on_terminal(server, ["run", "-it", "--image", "tiny", "--", "sh"], b"echo $((40+2)); exit 7\r")
    assert "42" in text
    assert status == 7


def on_terminal(server: Server, words: list[str], typed: bytes) -> tuple[str, int]:
    """Type into the program at the first sign of a prompt, and read all it shows."""
    import fcntl
    import struct
    import termios

    pid, ours = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 77, 0, 0))
        os.execve(sys.executable, [sys.executable, "-m", "corral", *words], server.env)
    shown = bytearray()
    try:
        while True:
            shown += os.read(ours, 65_536)
            if typed and b"# " in shown:
                os.write(ours, typed)
                typed = b""
    except OSError:  # EIO: the program has ended
        pass
    os.close(ours)
    return shown.decode(errors="replace"), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_services_from_set_to_rm(corral: Corral, box: str) -> None:
    made = loaded(
        corral("service", "set", box, "web", "--ready", "file=/tmp/up", "--restart", "never", "--json", "--", "echo serving; touch /tmp/up; exec sleep 1000")
    )
    assert made["settings"]["command"].startswith("echo serving")
    assert made["settings"]["ready"]["file"] == "/tmp/up"
    while loaded(corral("service", "ls", box, "--json"))[0]["state"] != "ready":
        pass
    assert corral("service", "logs", box, "web").stdout == "serving\n"
    assert corral("service", "stop", box, "web").stdout == "web stopped\n"
    assert loaded(corral("service", "start", box, "web", "--json"))["state"] != "stopped"
    assert corral("service", "set", box, "db", "--ready", "nonsense", "--", "true").returncode == 2
    assert corral("service", "rm", box, "web").returncode == 0
    assert loaded(corral("service", "ls", box, "--json")) == []
