"""What every test run has: root, a home of its own, one server, and a check that no test leaves anything behind.

Set by `./corral test`: CORRAL_TEST_CACHE, a directory with runsc and images that runs share (made by `corral setup` there); CORRAL_TEST_RUNSC, the runsc to use.
"""

from __future__ import annotations

import functools
import inspect
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import hypothesis
import pytest

from corral.places import Places
from harness import homes, leaks
from harness.server import Server

CACHE = Path(os.environ.get("CORRAL_TEST_CACHE", "/var/cache/corral/test"))
SETTLE = 20.0
"""Seconds that the end of a sandbox may take after the call that ended it, on a busy machine."""
COROUTINE_TIMEOUT = 150.0
"""Seconds, less than the `timeout` of pyproject.toml."""
PARTS = ("test_engine", "test_disks", "test_images", "test_guest", "test_network", "test_setup", "test_package", "test_egress_process")
"""System tests of single parts of the node: they have no server and look after themselves."""


# A busy machine is no fault of the code: nothing here is judged by the clock.
hypothesis.settings.register_profile("corral", deadline=None, print_blob=True)
hypothesis.settings.load_profile("corral")


def pytest_configure(config: pytest.Config) -> None:
    """Everything but unit tests needs root: run the whole again with sudo."""
    # Tests press Ctrl-C. A shell without job control has it ignored by what it puts into the background, and by all that is started there.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    only_unit = all("tests/unit" in argument for argument in config.args)
    if os.geteuid() == 0 or only_unit or config.option.collectonly:
        return
    sudo = shutil.which("sudo")
    if sudo is None:
        raise pytest.UsageError("these tests need root: run them as root, install sudo, or run tests/unit only")
    os.execv(sudo, [sudo, "-E", sys.executable, "-m", "pytest", *config.invocation_params.args])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound coroutine tests by cancelling them: pytest-timeout's signal would leave one half done, and the end of its fixtures waiting for it."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = _bounded(item.obj)


def _bounded(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with anyio.fail_after(COROUTINE_TIMEOUT):
            await test(*args, **kwargs)

    return run


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def shared() -> Places:
    """The installation that keeps what runs share. It is only read."""
    places = Places(CACHE / "home")
    if not places.images.is_dir():
        pytest.fail(f"{places.home} has no images: run `./corral test`, or `CORRAL_HOME={places.home} corral setup`", pytrace=False)
    return places


@pytest.fixture(scope="session")
def home(shared: Places) -> Iterator[Path]:
    """A home for this run, with the shared images, and the runsc that is to be tested first on PATH. It must be all gone at the end."""
    from corral import images
    from corral.node import programs

    homes.sweep_killed(shared)
    path = homes.make("server")
    places = Places(path)
    images.share(places, shared, ["tiny", "base"])
    (path / "cache").mkdir()
    for fetched in (shared.home / "cache").glob("quickstart-*"):
        (path / "cache" / fetched.name).symlink_to(fetched)
    if chosen := os.environ.get("CORRAL_TEST_RUNSC"):
        os.environ["PATH"] = f"{Path(chosen).parent}:{os.environ['PATH']}"
    else:
        programs.share(places, shared)
    yield path
    left = leaks.of_ended_home(places)
    shutil.rmtree(path)
    assert not left, "left behind after `corral down`:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def server(home: Path) -> Iterator[Server]:
    """The server of this run, started by the first test that asks. The SDK finds it by the environment."""
    server = Server(home)
    server.start()
    os.environ["CORRAL_URL"], os.environ["CORRAL_API_KEY"] = server.url, server.key
    yield server
    server.down()


@pytest.fixture(autouse=True)
def served_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that failed between the end of the server and its next start is no reason for those after it to fail."""
    yield
    server = request.node.funcargs.get("server") if isinstance(request.node, pytest.Function) else None
    if isinstance(server, Server) and server.process is not None and server.process.poll() is not None:
        server.start()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a system or security test that leaves a sandbox, or a trace of one that has ended: a process, mount, control group, loop device or file."""
    if not {"system", "security"} & set(request.path.parts) or request.path.name.startswith(PARTS):
        yield
        return
    server: Server = request.getfixturevalue("server")
    places = Places(server.home)
    before = server.sandboxes()
    yield
    if server.process is None or server.process.poll() is not None:
        pytest.fail(f"the server is gone:\n{server.tail()}", pytrace=False)
    living = server.sandboxes()
    for sandbox in living - before:
        server.delete(sandbox)
    traces = _settled(places, living & before)
    assert not traces, "left behind by sandboxes that have ended:\n" + "\n".join(line for lines in traces.values() for line in lines)
    assert not living - before, f"the test left sandboxes running: {', '.join(sorted(living - before))}"


def _settled(places: Places, living: set[str]) -> dict[str, list[str]]:
    """Traces of sandboxes that do not live, once they have had the time to vanish."""
    deadline = time.monotonic() + SETTLE
    while True:
        traces = {id: lines for id, lines in leaks.of_sandboxes(places).items() if id not in living}
        if not traces or time.monotonic() > deadline:
            return traces
        time.sleep(0.05)
