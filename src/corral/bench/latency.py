"""tti, exec, echo: what one caller waits for."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

from corral import Client, CorralError, Sandbox
from corral.bench.figure import Figure, Floor, timed

_ECHO_SERVER = "import socket, sys\ns = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\nwhile data := s.recv(4096): s.sendall(data)"
_LOOP = "i=0; while [ $i -lt {count} ]; do /bin/true; i=$((i+1)); done"


def tti(client: Client, n: int, image: str) -> Figure:
    """From the call of create to the first command's result. The floor is the node's own part of it: claiming a member and mounting its root."""
    samples: list[float] = []
    creates: list[float] = []
    cold = failures = 0
    for _ in range(n):
        began = time.perf_counter()
        try:
            with client.sandboxes.create(image) as sandbox:
                sandbox.run(["/bin/true"]).check()
                samples.append((time.perf_counter() - began) * 1000)
                creates.append(sandbox.timing.get("total", 0.0) * 1000)
                cold += sandbox.timing.get("cold", 0) == 1
        except CorralError:
            failures += 1
    return Figure("tti", "ms", samples, failures, Floor("the node's create", creates), {"image": image, "cold": cold})


def execute(client: Client, n: int, image: str) -> Figure:
    """`run` of /bin/true in a sandbox that is there, against fork and exec by a shell inside it."""
    with client.sandboxes.create(image) as sandbox:
        floor = Floor("fork and exec inside", [_forks(sandbox, 100) for _ in range(7)])
        sandbox.run(["/bin/true"]).check()
        samples: list[float] = []
        failures = 0
        for _ in range(n):
            began = time.perf_counter()
            result = sandbox.run(["/bin/true"])
            took = (time.perf_counter() - began) * 1000
            if result.ok:
                samples.append(took)
            else:
                failures += 1
    return Figure("exec", "ms", samples, failures, floor, {"image": image})


def _forks(sandbox: Sandbox, count: int) -> float:
    """Milliseconds of one fork, exec and wait, without the shell's own start."""
    bare = sandbox.run(_LOOP.format(count=0)).check().duration
    return max(0.001, sandbox.run(_LOOP.format(count=count)).check().duration - bare) / count * 1000


def echo(client: Client, n: int, image: str) -> Figure:
    """A line to a process that lives in the sandbox and back, against one to a process of the host over loopback."""
    with client.sandboxes.create(image) as sandbox, sandbox.exec("cat") as cat:

        def there_and_back() -> None:
            cat.stdin.write(b"hello\n")
            if cat.stdout.readline() != "hello\n":
                raise AssertionError("the echo is another line")

        for _ in range(5):
            there_and_back()
        samples = [timed(there_and_back) for _ in range(n)]
        cat.stdin.close()
        cat.wait(timeout=10)
    return Figure("echo", "ms", samples, 0, Floor("loopback TCP", _loopback(n)), {"image": image})


def _loopback(n: int) -> list[float]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with subprocess.Popen([sys.executable, "-c", _ECHO_SERVER, str(listener.getsockname()[1])]) as other:
            line, _ = listener.accept()
            with line:
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

                def there_and_back() -> None:
                    line.sendall(b"hello\n")
                    line.recv(4096)

                samples = [timed(there_and_back) for _ in range(n)]
            other.wait()
    return samples
