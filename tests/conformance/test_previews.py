"""What people do with previews, done with the programs they do it with: a browser before a development server and a notebook, a database's own client before a database."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corral import Client, Sandbox
from corral.places import Places
from corral.schema.service import Service, ServiceState
from harness import fetched

pytestmark = pytest.mark.timeout(600)

INDEX = '<!doctype html><body><h1 id="said"></h1><script type="module" src="/main.js"></script>'
MAIN = """
const show = (word) => { document.getElementById("said").textContent = word }
show("%s")
window.loads ??= performance.now()
if (import.meta.hot) import.meta.hot.accept()
"""
PACKAGE = '{"name": "page", "private": true, "type": "module"}'


def packed(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    return archive


def put(box: Sandbox, folder: Path, at: str, tmp_path: Path) -> None:
    """A folder with its links, in one piece."""
    box.files.upload(packed(folder, tmp_path / "packed.tar"), "/var/tmp/packed.tar")
    box.run(f"mkdir -p {at} && tar xf /var/tmp/packed.tar -C {at} && chmod 755 {at} && rm /var/tmp/packed.tar", user="root", timeout=300).check()


def ready(box: Sandbox, name: str) -> Service:
    """Wait for a service, by what is told of it."""

    def look() -> Service | None:
        found = box.services.get(name)
        if found.state in (ServiceState.FAILED, ServiceState.ENDED):
            text = "" if found.process is None else box.process(found.process).stdout.read()
            raise AssertionError(f"{found.detail}: {text[-2000:]}")
        return found if found.state is ServiceState.READY else None

    return until(box, look)


def until(box: Sandbox, look: Callable[[], Any]) -> Any:
    if (found := look()) is not None:
        return found
    for _ in box.events(follow=True):
        if (found := look()) is not None:
            return found
    raise AssertionError("no more events")


def test_a_page_of_vite_goes_on_while_its_sandbox_is_frozen_paused_and_resumed(client: Client, browser: Any, shared: Places, tmp_path: Path) -> None:
    modules = fetched.node_modules(shared, "vite@5")
    with client.sandboxes.create("base", memory=1024) as box:
        put(box, modules, "/app", tmp_path)
        for name, text in {"index.html": INDEX, "main.js": MAIN % "one", "package.json": PACKAGE}.items():
            box.files.write(f"/app/{name}", text)
        box.services.set("web", ["node", "node_modules/vite/bin/vite.js", "--port", "5173", "--host", "127.0.0.1"], cwd="/app", ready={"port": 5173})
        ready(box, "web")
        url = box.preview(5173).signed()
        assert url.startswith("https://5173-")
        page = browser.new_page()

        def shows(word: str) -> None:
            page.wait_for_function("word => document.getElementById('said')?.textContent === word", arg=word, timeout=60_000)

        page.goto(url)
        shows("one")
        assert "corral_signature" not in page.url
        loaded = page.evaluate("window.loads")
        box.files.write("/app/main.js", MAIN % "two")
        shows("two")
        assert page.evaluate("window.loads") == loaded, "the page was loaded again: the change did not come by the websocket"
        # Nobody has said anything for longer than the edge keeps a sandbox awake: with an engine that burns processor time it is frozen now.
        page.wait_for_timeout(4000)
        box.files.write("/app/main.js", MAIN % "three")
        shows("three")
        assert page.evaluate("window.loads") == loaded
        box.pause()
        box.resume()
        box.files.write("/app/main.js", MAIN % "four")
        shows("four")
        page.close()


def test_a_notebook_of_jupyterlab_is_used_in_the_browser(client: Client, browser: Any, shared: Places, tmp_path: Path) -> None:
    wheels = fetched.wheels(shared, "jupyterlab")
    with client.sandboxes.create("base", cpu=2, memory=2048, disk=4096) as box:
        put(box, wheels, "/wheels", tmp_path)
        box.run("pip install -q --no-index --find-links /wheels jupyterlab", user="root", timeout=400).check()
        command = "exec jupyter lab --ip 127.0.0.1 --port 8888 --no-browser --allow-root --IdentityProvider.token= --ServerApp.allow_remote_access=True"
        box.services.set("lab", command, cwd="/root", env={"HOME": "/root"}, user="root", ready={"port": 8888, "timeout": 120})
        ready(box, "lab")
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.goto(box.preview(8888).signed())
        page.locator('.jp-LauncherCard[data-category="Notebook"]').first.click(timeout=120_000)
        cell = page.locator(".jp-Notebook .jp-Cell .cm-content").first
        cell.click(timeout=60_000)
        page.keyboard.type("print(6 * 7)")
        page.keyboard.press("Shift+Enter")
        page.locator(".jp-OutputArea-output", has_text="42").first.wait_for(timeout=120_000)
        box.pause()
        box.resume()
        page.keyboard.type("print(6 * 9)")
        page.keyboard.press("Shift+Enter")
        page.locator(".jp-OutputArea-output", has_text="54").first.wait_for(timeout=120_000)
        context.close()


def test_a_databases_own_client_comes_through_a_tunnel(client: Client, shared: Places, tmp_path: Path) -> None:
    files = fetched.debian(
        shared, "postgresql", "postgresql-15", "postgresql-client-15", "libpq5", "libicu72", "libxml2", "libxslt1.1", "libldap-2.5-0", "libsasl2-2"
    )
    bin, libraries = "usr/lib/postgresql/15/bin", "usr/lib/x86_64-linux-gnu"
    with client.sandboxes.create("base", memory=1024) as box:
        put(box, files, "/pg", tmp_path)
        box.run("useradd -m postgres && mkdir /data && chown postgres /data", user="root").check()
        env = {"LD_LIBRARY_PATH": f"/pg/{libraries}", "LC_ALL": "C"}
        box.run(f"/pg/{bin}/initdb -D /data -U postgres --auth=trust -L /pg/usr/share/postgresql/15", user="postgres", env=env, timeout=120).check()
        settings = ["-h", "127.0.0.1", "-p", "5432", "-k", "/tmp", "-c", "jit=off", "-c", "dynamic_library_path=/pg/usr/lib/postgresql/15/lib"]
        asked = f"LD_LIBRARY_PATH=/pg/{libraries} /pg/{bin}/pg_isready -h 127.0.0.1 -p 5432"
        box.services.set("db", [f"/pg/{bin}/postgres", "-D", "/data", *settings], user="postgres", env=env, ready={"command": asked})
        ready(box, "db")

        def psql(port: int, *words: str) -> str:
            command = [str(files / bin / "psql"), "-X", "-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-At", *words]
            own = {**os.environ, "LD_LIBRARY_PATH": str(files / libraries), "PGSSLMODE": "disable"}
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=own)
            assert done.returncode == 0, done.stderr
            return done.stdout

        with box.tunnel(5432) as tunnel:
            psql(tunnel.port, "-c", "create table t as select i, repeat('x', 1000) as s from generate_series(1, 20000) i")
            assert psql(tunnel.port, "-c", "select count(*), sum(length(s)) from t") == "20000|20000000\n"
            assert len(psql(tunnel.port, "-c", "copy t to stdout")) > 20_000_000
            box.pause()
            # Who asks wakes it.
            assert psql(tunnel.port, "-c", "select max(i) from t") == "20000\n"
