"""What a new user would try in the first ten minutes, through the real server, SDK and CLI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from corral import Sandbox

Cli = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def cli_env(server) -> dict[str, str]:
    return {**os.environ, "CORRAL_URL": server.url, "CORRAL_API_KEY": server.key, "CORRAL_HOME": str(server.home)}


@pytest.fixture
def cli(cli_env: dict[str, str]) -> Cli:
    def run(*args: str, input: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        stdin = {"input": input} if input is not None else {"stdin": subprocess.DEVNULL}
        return subprocess.run([sys.executable, "-m", "corral", *args], env=cli_env, capture_output=True, timeout=120, check=False, **stdin)

    return run


def test_run_keeps_streams_apart_and_passes_the_exit_code(cli: Cli) -> None:
    done = cli("run", "--image", "tiny", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.stdout, done.stderr, done.returncode) == (b"out\n", b"err\n", 7)


def test_run_without_a_shell_or_libc(cli: Cli) -> None:
    done = cli("run", "--image", "tiny", "--", "/bin/true")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_run_passes_standard_input(cli: Cli) -> None:
    assert cli("run", "--image", "tiny", "--", "cat", input=b"hi\n").stdout == b"hi\n"
    big = os.urandom(3_000_000)
    assert cli("run", "--image", "tiny", "--", "cat", input=big).stdout == big


def test_a_signal_ends_the_process_with_128_plus_its_number(cli: Cli) -> None:
    assert cli("run", "--image", "tiny", "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_interrupt_kills_the_process_and_removes_the_sandbox(cli: Cli, cli_env: dict[str, str]) -> None:
    before = {box["id"] for box in json.loads(cli("ls", "--json").stdout)}
    argv = [sys.executable, "-m", "corral", "run", "--image", "tiny", "--", "sh", "-c", "echo up; sleep 1000"]
    with subprocess.Popen(argv, env=cli_env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    after = {box["id"] for box in json.loads(cli("ls", "--json").stdout)}
    assert after <= before


def test_the_guest_sees_gvisor_and_its_own_limits() -> None:
    with Sandbox.create("base", cpu=1, memory=512) as sb:
        assert "gVisor" in sb.run("dmesg").stdout
        assert sb.run("nproc").stdout == "1\n"
        total = int(sb.run("awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)
        assert total == 512 * 1024
        assert sb.run("grep -c ^processor /proc/cpuinfo").stdout == "1\n"
        assert sb.run("cat /proc/1/cmdline; ps -e | wc -l").exit_code == 0


def test_the_host_is_not_reachable() -> None:
    with Sandbox.create("base") as sb:
        assert sb.run("ls /proc/1/root/work 2>/dev/null; ls /host 2>/dev/null").stdout == ""
        assert sb.run(f"test -e /proc/{os.getpid()}/cmdline && grep -q pytest /proc/{os.getpid()}/cmdline").exit_code != 0
        assert sb.run("timeout 3 bash -c 'exec 3<>/dev/tcp/127.0.0.1/7070'").exit_code != 0
        # Without an egress policy its network device is closed: no address answers, nor does the way out.
        for address in ("192.0.2.1", "192.0.0.1", "192.0.0.8", "169.254.169.254"):
            assert sb.run(f"timeout 3 bash -c 'exec 3<>/dev/tcp/{address}/80'").exit_code != 0


def _answers_at_once(server) -> float:
    import httpx2

    began = time.perf_counter()
    httpx2.get(server.url + "/healthz").raise_for_status()
    return time.perf_counter() - began


def test_a_fork_bomb_fails_inside_and_nothing_else_notices(server) -> None:
    with Sandbox.create("base", pids=64) as sb, Sandbox.create("tiny") as sibling:
        bomb = sb.exec("bash", "-c", "for i in $(seq 500); do sleep 300 & done 2>&1; echo done; wait")
        text = ""
        for line in bomb.stdout:
            text += line
            if "fork" in line or "done" in line:
                break
        assert "Resource temporarily unavailable" in text or "fork" in text
        assert sibling.run("echo alive").stdout == "alive\n"
        bomb.kill()
        bomb.wait(timeout=30)
        assert sb.run("echo alive").stdout == "alive\n"


def test_a_huge_allocation_ends_the_process_or_the_box_with_oom_and_keeps_the_disk(server) -> None:
    from corral.errors import CorralError

    sb = Sandbox.create("base", memory=256, on_timeout="terminate")
    sibling = Sandbox.create("tiny")
    try:
        sb.files.write("/home/user/kept.txt", b"kept")
        code: int | None = None
        try:
            code = sb.run('python3 -c "x = bytearray(10 << 30); print(len(x))"', timeout=120).exit_code
        except CorralError:
            sb.refresh()
            assert (sb.state, sb.reason) == ("stopped", "oom")
            sb.start()
        else:
            assert code != 0
        assert sb.files.read("/home/user/kept.txt") == b"kept"
        assert sibling.run("echo alive").stdout == "alive\n"
    finally:
        sb.delete()
        sibling.delete()


def test_an_endless_printer_harms_nobody(server) -> None:
    with Sandbox.create("tiny") as sb, Sandbox.create("tiny") as sibling:
        flood = sb.exec("yes", "0123456789012345678901234567890123456789")
        for _ in range(20):
            assert sibling.run("echo alive").stdout == "alive\n"
            _answers_at_once(server)
        flood.kill()
        flood.wait(timeout=30)
        assert sb.run("echo alive").stdout == "alive\n"


def test_listing_the_root_directory_complains_of_nothing() -> None:
    """gVisor 20240729 fails calls about extended attributes of symbolic links in a way that `ls` reports."""
    with Sandbox.create("base") as sb:
        listed = sb.run("ls -la / && cp -a /bin /tmp/link", user="root")
        assert (listed.exit_code, listed.stderr) == (0, "")
