"""The commands that are about ports, of real sandboxes: `corral preview`, `port-forward`, `expose` and `hold`."""

from __future__ import annotations

import http.client
import http.server
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from corral import Client, Sandbox
from harness.server import Server, free_port

TIMEOUT = 60


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[Sandbox]:
    """With a web server at port 8000."""
    with Client(url=server.url, key=server.key) as client, client.sandboxes.create("base") as box:
        box.files.write("/tmp/www/index.html", "hello")
        box.services.set("web", ["python3", "-m", "http.server", "-d", "/tmp/www", "8000"], ready={"port": 8000})
        while box.services.get("web").state != "ready":
            next(iter(box.events(follow=True)))
        yield box


def corral(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "corral", *words], env=server.env, capture_output=True, text=True, timeout=TIMEOUT, check=False)


class Running:
    """A command that goes on until Ctrl-C. What it says first is `said`."""

    def __init__(self, server: Server, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "corral", *words], env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        self.said = self._process.stdout.readline()

    def interrupt(self) -> tuple[int, str]:
        """How it ends, and what it says to that."""
        self._process.send_signal(signal.SIGINT)
        _, said = self._process.communicate(timeout=TIMEOUT)
        return self._process.returncode, said

    def end(self) -> tuple[int, str]:
        """When it ends by itself."""
        _, said = self._process.communicate(timeout=TIMEOUT)
        return self._process.returncode, said


def page(url: str) -> str | int:
    """Of a name below localhost, which not every machine resolves."""
    parts = urlsplit(url)
    assert parts.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", parts.port, timeout=TIMEOUT)
    try:
        connection.request("GET", f"{parts.path or '/'}?{parts.query}", headers={"Host": parts.netloc})
        answer = connection.getresponse()
        return answer.read().decode() if answer.status == 200 else answer.status
    finally:
        connection.close()


def test_a_preview_is_listed_linked_made_public_and_private_and_its_links_are_ended(server: Server, box: Sandbox) -> None:
    (listed,) = json.loads(corral(server, "preview", box.id, "--json").stdout)
    assert (listed["port"], listed["public"]) == (8000, False)
    assert "python3" in corral(server, "preview", box.id).stdout
    url = corral(server, "preview", box.id, "8000").stdout.strip()
    assert url == listed["url"]
    assert page(url) == 401
    link = corral(server, "preview", box.id, "8000", "--expires", "600", "--path", "/index.html").stdout.strip()
    assert page(link) == "hello"
    assert page(link.replace("/index.html?", "/?")) == 403
    assert corral(server, "preview", box.id, "8000", "--public").returncode == 0
    assert page(url) == "hello"
    assert corral(server, "preview", box.id, "8000", "--private", "--host", "localhost").returncode == 0
    assert page(url) == 401
    assert corral(server, "preview", box.id, "--rotate-token").returncode == 0
    assert page(link) == 403
    assert corral(server, "preview", box.id, "--public").returncode == 2


def test_ports_have_local_addresses_until_ctrl_c(server: Server, box: Sandbox) -> None:
    local = free_port()
    running = Running(server, "port-forward", box.id, f"{local}:8000", "0:8000")
    assert running.said == f"127.0.0.1:{local} → {box.id}:8000\n"
    assert page(f"http://127.0.0.1:{local}/") == "hello"
    # A port that is taken is said in one line.
    done = corral(server, "port-forward", box.id, f"{local}:8000")
    assert (done.returncode, f"can't listen on 127.0.0.1:{local}" in done.stderr) == (1, True)
    assert running.interrupt() == (130, "")
    with pytest.raises(ConnectionRefusedError):
        page(f"http://127.0.0.1:{local}/")
    assert corral(server, "port-forward", box.id, "http").returncode == 2


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from out here")

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_server_out_here_has_a_name_inside_until_ctrl_c_or_the_end_of_the_sandbox(server: Server, box: Sandbox) -> None:
    ask = ["python3", "-c", "import urllib.request as u; print(u.urlopen('http://api:8080/', timeout=60).read().decode())"]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as listener:
        serving = threading.Thread(target=listener.serve_forever)
        serving.start()
        try:
            words = ("expose", box.id, str(listener.server_port), "--as", "api:8080")
            running = Running(server, *words)
            assert running.said == f"api:8080 in {box.id} → 127.0.0.1:{listener.server_port}\n"
            assert box.run(ask).stdout == "from out here\n"
            assert running.interrupt() == (130, "")
            assert box.run(ask).exit_code != 0
            running = Running(server, *words)
            box.pause()
            code, said = running.end()
            assert (code, len(said.splitlines())) == (1, 1)
            box.resume()
        finally:
            listener.shutdown()
            serving.join()


def test_a_hold_is_seen_in_its_sandbox(server: Server, box: Sandbox) -> None:
    assert corral(server, "hold", box.id, "600", "--reason", "a demo").returncode == 0
    assert box.refresh().info.held_until is not None
    assert [event.data for event in box.events(kind="sandbox.held")] == [{"seconds": 600.0, "reason": "a demo"}]
    assert corral(server, "hold", box.id, "0").returncode == 0
    assert box.refresh().info.held_until is None
