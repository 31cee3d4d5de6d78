"""Ten Dockerfiles of well-known shape, without a network: what Corral builds of them is what buildah builds, file by file and setting by setting."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from corral import Client, Image
from corral.images import Catalog
from corral.node import programs
from corral.places import Places
from corral.schema.image import BuildLog
from harness import homes, leaks, oci
from harness.bases import Bases
from harness.dockerfiles import CASES, Case
from harness.oci import Registry
from harness.server import Server

MISSING = [name for name in ("buildah", "docker-registry", "skopeo", "umoci") if shutil.which(name) is None]
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} are not installed"), pytest.mark.slow, pytest.mark.timeout(600)]

OWN = {"etc/hosts", "etc/hostname", "etc/resolv.conf", "run", "run/.containerenv"}
"""Each container's and each sandbox's own."""
TIMED = {
    "etc/ld.so.cache",
    "var/cache/ldconfig/aux-cache",
    "var/lib/apt/extended_states",
    "var/log/apt/history.log",
    "var/log/apt/term.log",
    "var/log/dpkg.log",
}
"""Files that tell when they were written."""
MOUNTED = {"dev", "etc", "proc", "sys", "tmp"}
"""Where a sandbox has its own files: an image of nothing gets these directories, empty."""
NEEDS = {"go static": "go", "uv project": "uv"}


@dataclass(frozen=True)
class Shop:
    """Registries that stand for those of the world, and a server that takes them for those."""

    room: Path
    client: Client
    offers: frozenset[str]


@pytest.fixture(scope="module")
def shop(shared: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    room = tmp_path_factory.mktemp("shop")
    registry = Registry(room / "registry")
    home = Places(homes.make("server"))
    try:
        catalog = Catalog(shared)
        [debs] = (shared.home / "cache").glob("*/archives")
        bases = Bases(room, registry, base=catalog.find("base").spec.layers[0], tiny=catalog.find("tiny").spec.layers[0], debs=debs)
        offers = set[str]()
        if shutil.which("go"):
            bases.golang()
            offers.add("go")
        if (uv := _uv(shared.home / "cache" / "uv")) is not None:
            bases.uv(uv)
            offers.add("uv")
        mirror = f'[[registry]]\nlocation = "{{}}"\n[[registry.mirror]]\nlocation = "{registry.address}"\ninsecure = true\n'
        (room / "registries.conf").write_text('unqualified-search-registries = ["docker.io"]\n' + mirror.format("docker.io") + mirror.format("ghcr.io"))
        programs.share(home, shared)
        server = Server(home.home, extra={"CORRAL_REGISTRY_MIRRORS": f"docker.io=http://{registry.address},ghcr.io=http://{registry.address}"})
        server.start()
        with Client(server.url, server.key) as client:
            yield Shop(room, client, frozenset(offers))
        server.down()
        assert leaks.of_ended_home(home) == []
    finally:
        registry.close()
        shutil.rmtree(home.home)


def _uv(cache: Path) -> Path | None:
    """uv's program, of its package; None where no index answers and none is kept."""
    if not list(cache.glob("uv-*.whl")):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", cache, "uv"], capture_output=True, timeout=300, check=False)
    for wheel in cache.glob("uv-*.whl"):
        shutil.unpack_archive(wheel, cache / "unpacked", "zip")
        program = next((cache / "unpacked").glob("*/scripts/uv"))
        program.chmod(0o755)
        return program
    return None


def buildah(shop: Shop, context: Path, case: Case, target: Path) -> tuple[Path, Mapping[str, object]]:
    """What buildah makes of it: its root file system, and how processes start there."""
    storage = ["--root", shop.room / "storage", "--runroot", shop.room / "run", "--storage-driver", "vfs", "--registries-conf", shop.room / "registries.conf"]
    options = ["--isolation", "chroot", "--network", "host", "--identity-label=false", "--layers=false", "--format", "docker", "-t", "result"]
    options += [word for name, value in case.args.items() for word in ("--build-arg", f"{name}={value}")]
    options += [] if case.target is None else ["--target", case.target]
    file = context / ("Dockerfile" if case.plain is None else "Dockerfile.plain")

    def run(*words: str | Path) -> str:
        return oci.program("unshare", "--mount", "buildah", *storage, *words)

    run("build", *options, "-f", file, context)
    layout = target.with_name("buildah-layout")
    run("push", "--disable-compression", "result", f"oci:{layout}:v1")
    config = json.loads(run("inspect", "--type", "image", "result"))["Docker"]["config"]
    run("rmi", "result")
    oci.program("umoci", "unpack", "--image", f"{layout}:v1", target)
    return target / "rootfs", config


def files(root: Path) -> dict[str, object]:
    """All that counts of the files of an image, but when they were written."""
    found = oci.manifest(root)
    links = found.pop("hard links")
    kept = {name: what for name, what in found.items() if name not in OWN and not name.startswith(("var/cache/debconf/", "proc/", "sys/", "dev/"))}
    return {name: (*what[:3], None if _tells_when(name) else what[4], what[5]) for name, what in kept.items() if isinstance(what, tuple)} | {
        "hard links": links
    }


def _tells_when(name: str) -> bool:
    # RECORD has the digest of uv_cache.json; what else it lists is compared itself.
    return name in TIMED or name.endswith((".pyc", ".dist-info/uv_cache.json", ".dist-info/RECORD"))


def settings(config: object) -> dict[str, object]:
    """Those that say something."""
    assert isinstance(config, Mapping)
    return {name: sorted(value) if name == "Env" else value for name, value in config.items() if name != "Hostname" and value}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_buildah_makes(shop: Shop, name: str, tmp_path: Path) -> None:
    if NEEDS.get(name, name) not in {*shop.offers, name}:
        pytest.skip(f"there is no {NEEDS[name]} to be had")
    case = CASES[name]
    (tmp_path / "context").mkdir(mode=0o755)
    case.write(tmp_path / "context")
    built = Image.from_dockerfile(tmp_path / "context/Dockerfile", args=case.args, target=case.target).build(client=shop.client)
    shop.client.images.export(built.id, tmp_path / "corral.tar")
    root, config = buildah(shop, tmp_path / "context", case, tmp_path / "buildah")
    wanted, found = files(root), files(oci.unpacked(tmp_path / "corral.tar", tmp_path / "corral"))
    for name in MOUNTED - wanted.keys():
        assert not any(path.startswith(f"{name}/") for path in found)
        found.pop(name, None)
    different = {path: (found.get(path), wanted.get(path)) for path in sorted(wanted.keys() | found.keys()) if found.get(path) != wanted.get(path)}
    assert different == {}
    assert settings(oci.inspected(tmp_path / "corral.tar")["config"]) == settings(config)


def test_packages_are_known_the_second_time(shop: Shop) -> None:
    """Installed by apt and by pip, then found without a step; and of a change only what comes after it is done."""

    def steps(image: Image) -> tuple[list[str], int]:
        lines: list[BuildLog] = []
        image.build(client=shop.client, on_log=lines.append)
        return [line.text for line in lines if line.stream == "step"], sum(line.stream == "cached" for line in lines)

    apt = Image.from_registry("python:3.11-slim").apt_install("jq")
    done, _ = steps(apt.pip_install("greeting==1.0"))
    assert len(done) == 2
    assert steps(apt.pip_install("greeting==1.0")) == ([], 2)
    changed, known = steps(apt.pip_install("greeting>=1.0"))
    assert (len(changed), known) == (1, 1)
    assert "greeting>=1.0" in changed[0]
    with shop.client.sandboxes.create(apt.pip_install("greeting==1.0")) as box:
        assert box.run("greeting; echo 7 | jq .+1").stdout == "hello\n8\n"
