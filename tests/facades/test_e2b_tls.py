"""E2B's clients in their own way: TLS, and a name for every sandbox, with nothing set but the key, the domain and the authority to trust."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from corral.places import Places
from harness import homes, leaks
from harness.server import Server, free_port


@pytest.fixture
def secure(shared: Places) -> Iterator[tuple[Server, int]]:
    """A server with `--tls`, and the port of that."""
    home = homes.make("tls")
    places = Places(home)
    homes.furnish(places, shared, ["tiny", "base"])
    port = free_port()
    server = Server(home, extra={"CORRAL_TLS_PORT": str(port), "CORRAL_POOL": "2", "CORRAL_EDGE_PORT": "0"})
    server.start("--tls")
    try:
        yield server, port
    finally:
        server.down()
    left = leaks.of_ended_home(places)
    shutil.rmtree(home)
    assert not left


def test_a_script_works_with_what_the_server_says_is_to_be_set(secure: tuple[Server, int]) -> None:
    server, port = secure
    while "export SSL_CERT_FILE" not in (said := server.log.read_text()):
        assert server.process is not None
        assert server.process.poll() is None
    exports = [line for line in said.splitlines() if line.startswith("export ")]
    assert exports[1] == f"export E2B_DOMAIN=corral.localhost:{port}"
    assert server.key.removeprefix("ck_") not in said
    script = "\n".join([*exports, shlex.join([sys.executable, str(Path(__file__).with_name("e2b_tls.py"))])])
    others = {name: value for name, value in os.environ.items() if not name.startswith("E2B_")}
    done = subprocess.run(["/bin/sh", "-c", script], env=others, capture_output=True, text=True, timeout=150, check=False)
    assert (done.returncode, done.stdout) == (0, "all of it\n"), done.stderr
