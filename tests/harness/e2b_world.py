"""What E2B's own tests need besides a server, made on this machine: an internet, and TLS with a name for every sandbox. Needs root and what `./corral test` has made.

The internet is the small one of Corral's tests (`harness.internet`) with the servers that E2B's tests ask for. Sandboxes trust its authority: their `base` is an image that does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from corral import Client, Image
from corral.places import Places
from harness import homes
from harness.internet import DNS, HERE, OTHER, Internet
from harness.server import Server, free_port

PUBLIC = ("1.1.1.1", "8.8.8.8")
"""Servers that E2B's tests ask for by their addresses."""
STATUSES = {"1.1.1.1": 301, "8.8.8.8": 302, "/generate_204": 204}
"""What they answer there."""
NAMES = {"connectivitycheck.gstatic.com": [OTHER]}
ADDED, BUNDLE = "/usr/local/share/ca-certificates/internet.crt", "/etc/ssl/certs/ca-certificates.crt"
RESOLVER = """import socket

_asked = socket.getaddrinfo


def getaddrinfo(host, *rest, **more):
    \"\"\"As a system with libnss-myhostname, which knows where *.localhost is.\"\"\"
    name = host.decode() if isinstance(host, bytes) else host
    return _asked("127.0.0.1" if name is not None and name.endswith(".localhost") else host, *rest, **more)


socket.getaddrinfo = getaddrinfo
"""
"""A module that pytest loads before E2B's tests."""


@dataclass(frozen=True)
class World:
    """Where the server is, and what E2B's client is given to find it."""

    url: str
    key: str
    environment: dict[str, str]


@contextmanager
def world() -> Generator[World]:
    """A server of its own with an internet, until the end."""
    shared = Places(Path(os.environ.get("CORRAL_TEST_CACHE", "/var/cache/corral/test")) / "home")
    home = homes.make("e2b-suite")
    homes.furnish(Places(home), shared, ["tiny", "base"])
    with tempfile.TemporaryDirectory(prefix="corral-internet-", dir="/var/tmp") as directory:
        device = f"ct{os.getpid()}"
        internet = Internet(f"{device}w", Path(directory))
        internet.zone.addresses.update(NAMES)
        internet.statuses.update(STATUSES)
        internet.open(None, device, here=HERE, more=PUBLIC)
        port = free_port()
        settings = {"CORRAL_RESOLVERS": f"{DNS}:53", "CORRAL_TLS_PORT": str(port), "CORRAL_EDGE_PORT": "0", "SSL_CERT_FILE": str(internet.authority.file)}
        server = Server(home, extra=settings)
        try:
            server.start("--tls")
            key = server.key
            with Client(server.url, key) as client:
                base = Image.named("base").user("root").add_text(internet.authority.file.read_text(), ADDED)
                base.run(f"cat {ADDED} >> {BUNDLE}").user("user").build(template="base", client=client)
            (Path(directory) / "corral_names.py").write_text(RESOLVER)
            found = {
                "E2B_DOMAIN": f"corral.localhost:{port}",
                "SSL_CERT_FILE": str(home / "keys" / "edge-ca.pem"),
                "PYTHONPATH": directory,
                "PYTEST_PLUGINS": "corral_names",
            }
            yield World(server.url, key, found)
        finally:
            server.down()
            internet.close()
    shutil.rmtree(home)
