"""A server with TLS, and a real browser that trusts it. Both are made once for each run; nothing here is part of `./corral test` without arguments, since it fetches much."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from corral import Client
from corral.places import Places
from harness import fetched, homes
from harness.server import Server

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")


@pytest.fixture(scope="session")
def secure(shared: Places) -> Iterator[Server]:
    """With `--tls`."""
    home = homes.make("secure")
    places = Places(home)
    homes.furnish(places, shared, ["tiny", "base"])
    server = Server(home, extra={"CORRAL_TLS_PORT": "0", "CORRAL_POOL": "2", "CORRAL_EDGE_PORT": "0"})
    with homes.running(server, "--tls"):
        yield server


@pytest.fixture
def client(secure: Server) -> Iterator[Client]:
    with Client(url=secure.url, key=secure.key) as client:
        yield client


@pytest.fixture(scope="session")
def browser(secure: Server, shared: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Playwright's, of the machine's Chromium: it fetches none of its own. It trusts the server's authority as `corral trust` has it trusted, by its list of certificates."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None or shutil.which("certutil") is None:
        pytest.skip("needs Chromium and certutil: apt-get install chromium-headless-shell libnss3-tools")
    at_home = tmp_path_factory.mktemp("browser")
    database = at_home / ".pki" / "nssdb"
    database.mkdir(parents=True)
    subprocess.run(["certutil", "-d", f"sql:{database}", "-N", "--empty-password"], check=True)
    authority = str(secure.home / "keys" / "edge-ca.pem")
    subprocess.run(["certutil", "-d", f"sql:{database}", "-A", "-t", "C,,", "-n", "corral", "-i", authority], check=True)
    sys.path.insert(0, str(fetched.installed(shared, "playwright")))
    module: Any = importlib.import_module("playwright.sync_api")
    with module.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, env={**os.environ, "HOME": str(at_home)}, args=["--no-sandbox"])
        yield browser
        browser.close()
