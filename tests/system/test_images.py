"""The images that ship with Corral: programs of theirs run from them, on the host's overlayfs by chroot, and their builds can be killed and repeated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from corral.errors import ImageNotFound, SetupError
from corral.ids import new_id
from corral.images import Catalog, StoredImage, ensure, share
from corral.images.builtin import LEFT_SECONDS, outdated, sweep
from corral.images.library import Library
from corral.node import rootfs
from corral.node.disks import PoolDisks
from corral.node.interface import ImageSpec
from corral.places import Places
from harness import homes

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]

IN_CHROOT = 'mount --bind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec /usr/sbin/chroot --userspec="$1" "$0" /bin/sh -c "$2"'


@pytest.fixture
def places() -> Iterator[Places]:
    with homes.without_engine("images") as places:
        yield places


@pytest.fixture
async def start(places: Places) -> AsyncIterator[Callable[[ImageSpec], Run]]:
    """Mount an image with a disk, as the engine does; what it returns runs shell commands in it."""
    disks = PoolDisks(places, default_mib=256, stock=1, pool_bytes=2 << 30)
    await disks.open(known=set())
    disk = await disks.attach(new_id("sb"), 256)
    member = places.members / "m-1" / "root"
    (member / "rootfs").mkdir(parents=True)

    def mounted(image: ImageSpec) -> Run:
        rootfs.mount_root(member, image.layers, disk)

        def run(command: str, *, user: str = "0:0") -> subprocess.CompletedProcess[bytes]:
            home = image.workdir if user != "0:0" else "/root"
            argv = ["unshare", "--mount", "sh", "-c", IN_CHROOT, str(member / "rootfs"), user, command]
            return subprocess.run(argv, env={**image.env, "HOME": str(home)}, capture_output=True, timeout=120, check=False)

        return run

    yield mounted
    rootfs.unmount_root(member)
    await disks.shutdown()


def with_cache(places: Places, shared: Places) -> None:
    """Give a home the packages that were downloaded for another."""
    (places.home / "cache").symlink_to(shared.home / "cache")


def test_tiny_is_built_from_its_package_and_not_twice(places: Places, shared: Places) -> None:
    with_cache(places, shared)
    lines: list[str] = []
    [first] = ensure(places, ["tiny"], on_line=lines.append)
    assert first.size < 4 << 20
    assert lines
    lines.clear()
    [second] = ensure(places, ["tiny"], on_line=lines.append)
    assert (second, lines) == (first, [])
    shutil.rmtree(first.spec.layers[0])
    [third] = ensure(places, ["tiny"], on_line=lines.append)
    assert third.spec.id != first.spec.id
    assert Catalog(places).find("tiny") == third


def as_of(places: Places, name: str, recipe: str) -> StoredImage:
    """Make an image what an earlier version of Corral would have made."""
    catalog = Catalog(places)
    old = replace(catalog.find(name), recipe=recipe)
    catalog.add(old)
    return old


def test_an_image_of_an_earlier_version_is_made_anew_and_said_to_be_old_until_then(places: Places, shared: Places) -> None:
    with_cache(places, shared)
    share(places, shared, ["base"])
    ensure(places, ["tiny"], on_line=print)
    new = as_of(places, "base", "base-0")
    old = as_of(places, "tiny", "tiny-0")
    with capture_logs() as logs:
        Library(places, Catalog(places)).open()
    assert [line["image"] for line in logs if "corral setup" in line["event"]] == ["base", "tiny"]
    done = subprocess.run([sys.executable, "-m", "corral", "doctor"], env={**os.environ, "CORRAL_HOME": str(places.home)}, capture_output=True, check=False)
    assert b"the image base would be made otherwise today" in done.stdout
    [anew] = ensure(places, ["tiny"], on_line=print)
    catalog = Catalog(places)
    assert catalog.find("tiny") == anew != old
    # Sandboxes may stand on the old one.
    assert catalog.find(old.spec.id).spec.name is None
    assert (catalog.find("base"), outdated(catalog)) == (new, ["base"])


def test_setup_removes_images_of_earlier_versions_where_no_server_has_run(places: Places, shared: Places) -> None:
    with_cache(places, shared)
    ensure(places, ["tiny"], on_line=print)
    old = as_of(places, "tiny", "tiny-0")
    [new] = ensure(places, ["tiny"], on_line=print)
    catalog, lines = Catalog(places), list[str]()
    sweep(places, on_line=lines.append)
    assert catalog.find(old.spec.id).spec.name is None
    later = time.time() + LEFT_SECONDS + 60
    places.keys.mkdir()
    sweep(places, on_line=lines.append, now=later)
    assert (catalog.find(old.spec.id).spec.id, lines) == (old.spec.id, [])
    places.keys.rmdir()
    sweep(places, on_line=lines.append, now=later)
    assert ([image.spec.id for image in catalog.list()], len(lines)) == ([new.spec.id], 1)
    assert not old.spec.layers[0].exists()
    assert new.spec.layers[0].exists()


def test_an_image_gets_its_name_back_when_its_recipe_is_the_one_again(places: Places, shared: Places) -> None:
    with_cache(places, shared)
    [mine] = ensure(places, ["tiny"], on_line=print)
    other = replace(mine, spec=replace(mine.spec, id=new_id("im")), created=mine.created + timedelta(seconds=1), recipe="tiny-of-another-version")
    Catalog(places).add(other)
    assert Catalog(places).find("tiny") == other
    lines: list[str] = []
    assert ensure(places, ["tiny"], on_line=lines.append) == [mine]
    assert (Catalog(places).find("tiny"), lines) == (mine, [])


async def test_tiny_runs_its_programs_without_a_libc(places: Places, shared: Places, start: Callable[[ImageSpec], Run]) -> None:
    with_cache(places, shared)
    [image] = ensure(places, ["tiny"], on_line=print)
    run = start(image.spec)
    assert run("echo out; echo err >&2; exit 7").returncode == 7
    assert run("seq 3 | sort -r | head -1").stdout == b"3\n"
    assert run("id -un; cat /etc/passwd | wc -l").stdout == b"root\n2\n"
    layer = image.spec.layers[0]
    assert [path for path in layer.rglob("*") if path.is_file() and not path.is_symlink() and path.name not in ("busybox", "passwd", "group")] == []


async def test_base_has_what_people_and_agents_expect(shared: Places, start: Callable[[ImageSpec], Run]) -> None:
    image = Catalog(shared).find("base")
    run = start(image.spec)
    for program in ("bash", "python3 -m pip", "python", "node", "npm", "git", "curl", "gcc", "make", "ps", "less", "sqlite3", "ip -V;:", "jq", "rg"):
        done = run(f"{program} --version", user="1000:1000")
        assert done.returncode == 0, (program, done.stderr)
    assert run("id -un; pwd; echo $PATH | cut -d: -f1", user="user").stdout.split() == [b"user", b"/", b"/home/user/.local/bin"]
    assert run("touch ~/mine && stat -c %U ~/mine ~", user="1000:1000").stdout == b"user\nuser\n"
    assert run("python3 -m venv ~/v && ~/v/bin/python -c 'import ssl, sqlite3, ctypes; print(6 * 7)'", user="1000:1000").stdout == b"42\n"
    assert run("locale 2>&1 | grep LC_ALL; python3 -c 'print(\"ä\")'").stdout == "LC_ALL=\nä\n".encode()
    assert run("printf 'int main(){return 42;}' > /tmp/a.c && cc /tmp/a.c -o /tmp/a && /tmp/a").returncode == 42
    assert (
        run("git init -q /tmp/r && cd /tmp/r && git -c user.name=a -c user.email=b commit -q --allow-empty -m x && git log --oneline | wc -l").stdout == b"1\n"
    )
    assert run("node -e 'console.log(process.version.length > 3)'").stdout == b"true\n"


async def test_base_can_install_into_itself(shared: Places, start: Callable[[ImageSpec], Run]) -> None:
    """As its user and as root, from files: there is no network here."""
    run = start(Catalog(shared).find("base").spec)
    package = 'mkdir -p ~/p && cd ~/p && printf \'[project]\\nname="ours"\\nversion="1"\\n[project.scripts]\\nours="ours:main"\\n\' > pyproject.toml && printf \'def main(): print(6*7)\\n\' > ours.py'
    install = "python3 -m pip install -q --no-build-isolation --no-index . 2>&1"
    for user in ("1000:1000", "0:0"):
        done = run(f"{package} && {install} && ours", user=user)
        assert done.stdout.splitlines()[-1:] == [b"42"], done
    node = 'mkdir -p ~/n && cd ~/n && echo \'{"name":"theirs","version":"1.0.0","bin":"x.js"}\' > package.json && printf \'#!/usr/bin/env node\\nconsole.log(1)\' > x.js'
    done = run(f"{node} && npm install -g --offline . >&2 && theirs", user="1000:1000")
    assert done.stdout == b"1\n", done.stderr


def test_base_is_lean_and_keeps_no_identity(shared: Places) -> None:
    layer = Catalog(shared).find("base").spec.layers[0]
    for absent in ("etc/machine-id", "etc/resolv.conf", "var/lib/apt/lists/lock", "usr/share/man/man1"):
        assert not (layer / absent).exists()
    assert list((layer / "dev").iterdir()) == list((layer / "tmp").iterdir()) == list((layer / "var/log").iterdir()) == []
    assert (layer / "usr/share/doc/bash/copyright").exists()
    assert "http" in (layer / "etc/apt/sources.list").read_text()


def test_layers_are_closed_to_users_of_the_host(shared: Places) -> None:
    assert shared.layers.stat().st_mode & 0o077 == 0
    for image in Catalog(shared).list():
        assert image.spec.layers[0].stat().st_uid == 0


def test_an_image_that_is_not_built_in_is_refused(places: Places) -> None:
    with pytest.raises(ImageNotFound, match="nonsense") as error:
        ensure(places, ["tiny", "nonsense"], on_line=print)
    assert error.value.hint == "built in: base, code-interpreter, node, python, python-science, scratch, tiny"
    assert Catalog(places).list() == ()


def test_without_mmdebstrap_the_mend_is_named(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = places.home / "tools"
    tools.mkdir(parents=True)
    for tool in ("apt-get", "apt-config", "dpkg"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(SetupError) as error:
        ensure(places, ["base"], on_line=print)
    assert error.value.hint == "apt-get install mmdebstrap"
    assert [path.name for path in places.layers.iterdir()] == [".lock"]


BUILD = "import sys; from pathlib import Path; from corral.images import ensure; from corral.places import Places; ensure(Places(Path(sys.argv[1])), [sys.argv[2]], on_line=lambda line: print(line, flush=True))"


def test_a_killed_build_leaves_no_image_and_the_next_call_clears_it_away(places: Places, shared: Places) -> None:
    with_cache(places, shared)
    with subprocess.Popen([sys.executable, "-c", BUILD, str(places.home), "base"], stdout=subprocess.PIPE) as build:
        assert build.stdout is not None
        for line in build.stdout:
            if b"reading the package lists" in line:
                break
        build.kill()
    assert Catalog(places).list() == ()
    ensure(places, ["tiny"], on_line=print)
    for _ in range(1000):
        if not (left := list(Path("/dev/shm").glob(f"{places.tag}*"))):
            break
        ensure(places, ["tiny"], on_line=print)
    assert left == []
    [layer] = [path for path in places.layers.iterdir() if path.name != ".lock"]
    assert Catalog(places).find("tiny").spec.layers == (layer,)


@pytest.mark.no_engine
@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_base_can_be_built_without_a_network_from_the_packages_kept(places: Places, shared: Places, start: Callable[[ImageSpec], Run]) -> None:
    with_cache(places, shared)
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", BUILD, str(places.home), "base"], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "kept in the cache" in done.stdout
    run = start(Catalog(places).find("base").spec)
    assert run("python3 -c 'print(6 * 7)'").stdout == b"42\n"
