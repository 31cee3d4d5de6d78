"""One real server: the program `corral up`, with a home and a port of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

READY_TIMEOUT = 90.0
"""Seconds: on a busy machine the first pool members take a while."""
POOL = "8"
"""Members that wait: enough for most tests, without making hundreds that none of them uses."""
LEAVE_TIMEOUT = 60.0


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Server:
    """`url`, `key` and `home` are what a client needs; `env` is the environment for programs that shall use this server."""

    home: Path
    port: int = field(default_factory=free_port)
    extra: Mapping[str, str] = field(default_factory=dict[str, str])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def key(self) -> str:
        """The admin key that the first start made."""
        return (self.home / "keys" / "admin").read_text().strip()

    @property
    def env(self) -> dict[str, str]:
        return {**self._own_env(), "CORRAL_URL": self.url, "CORRAL_API_KEY": self.key}

    @property
    def log(self) -> Path:
        return self.home / "server-under-test.log"

    def _own_env(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
        # A home directory of its own as well, so that the user's client configuration is neither used nor overwritten. Nothing that is made aside may be mistaken for a leak.
        return {**inherited, "CORRAL_HOME": str(self.home), "HOME": str(self.home), "CORRAL_CODE_TEMPLATES": "0", **self.extra}

    def start(self, *arguments: str) -> None:
        """Start it and wait until it takes requests."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "corral", "up", "--port", str(self.port), "--pool", POOL, *arguments],
                env=self._own_env(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_TIMEOUT
        while not self.ready():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the server was not ready within {READY_TIMEOUT:g} s:\n{self.tail()}")
            time.sleep(0.05)

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """As a crash: nothing is tidied up, sandboxes go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def leave(self) -> None:
        """An orderly end; sandboxes go on for the next server."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=LEAVE_TIMEOUT)

    def down(self) -> None:
        """`corral down`: the server and everything of it ends."""
        done = subprocess.run([sys.executable, "-m", "corral", "down"], env=self._own_env(), capture_output=True, timeout=LEAVE_TIMEOUT * 2, check=False)
        if self.process is not None:
            self.process.wait(timeout=LEAVE_TIMEOUT)
        if done.returncode:
            raise AssertionError(f"`corral down` ended with {done.returncode}: {done.stderr.decode(errors='replace')}\n{self.tail()}")

    def sandboxes(self) -> set[str]:
        """Ids of those not ended, as the API lists them."""
        found: set[str] = set()
        cursor = ""
        while True:
            request = urllib.request.Request(f"{self.url}/v1/sandboxes?limit=100{cursor}", headers={"Authorization": f"Bearer {self.key}"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                page = json.load(answer)
            found.update(box["id"] for box in page["sandboxes"])
            if page["next"] is None:
                return found
            cursor = f"&cursor={page['next']}"

    def delete(self, sandbox: str) -> None:
        request = urllib.request.Request(f"{self.url}/v1/sandboxes/{sandbox}", method="DELETE", headers={"Authorization": f"Bearer {self.key}"})
        with urllib.request.urlopen(request, timeout=60):
            pass

    def tail(self) -> str:
        """The end of what the server said."""
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
