"""Images such as Dockerfiles begin with, made of what is on this machine: `debian`, `python`, `node`, `golang`, `busybox` and `uv`, in a registry of the test's own.

Debian's files are those of the image `base`, package by package. Packages and wheels that a build may want are in the images themselves, so that it needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from harness.oci import Layout, Registry, program

_CORE = (
    *("apt", "base-files", "base-passwd", "bash", "coreutils", "dash", "diffutils", "dpkg", "findutils", "grep", "gzip", "hostname", "libc-bin", "login"),
    *("mawk", "passwd", "sed", "tar", "util-linux"),
)
_PYTHON = ("python-is-python3", "python3", "python3-pip", "python3-venv")
_NOT_FOR_NPM = ("build-essential", "g++", "gyp", "libnode-dev", "node-babel", "node-terser", "node-types-", "node-webpack", "python3", "webpack")
"""What Debian's npm brings along to compile modules, which is twenty times as large as npm."""
_OFFERED = ("jq", "libjq1", "libonig5")
"""Packages that can be installed in an image."""
_MERGED = ("usr", *(name for part in ("bin", "sbin", "lib", "lib64") for name in (f"usr/{part}", part)))
"""Directories and the links to them, in whose names packages have their files."""
_OWN = (
    *("etc/alternatives", "etc/apt", "etc/group", "etc/gshadow", "etc/ld.so.cache", "etc/passwd", "etc/shadow", "etc/ssl", "root", "tmp"),
    *("var/cache/apt", "var/lib/apt", "var/lib/dpkg/alternatives", "var/log"),
)
"""What of a system belongs to no package."""
_PIP = "[global]\nno-index = true\nfind-links = /srv/wheels\nbreak-system-packages = true\ndisable-pip-version-check = true\nroot-user-action = ignore\n"


class Packages:
    """Those of an installed Debian, below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._status: dict[str, str] = {}
        self._offers: dict[str, str] = {}
        for text in (root / "var/lib/dpkg/status").read_text().split("\n\n"):
            if (name := _field(text, "Package")) is not None:
                self._status[name] = text
        for name, text in self._status.items():
            for word in _names(_field(text, "Provides") or ""):
                self._offers.setdefault(word[0], name)

    def needed(self, names: Iterable[str], *, without: tuple[str, ...] = ()) -> set[str]:
        """These and all they depend on, but none whose name begins as one of `without`."""
        found, todo = set[str](), list(names)
        while todo:
            wanted = todo.pop()
            name = wanted if wanted in self._status else self._offers.get(wanted)
            if name is None or name in found or name.startswith(without):
                continue
            found.add(name)
            for relation in ("Depends", "Pre-Depends"):
                todo += [choice[0] for choice in _names(_field(self._status[name], relation) or "")]
        return found

    def copy(self, names: set[str], target: Path) -> None:
        """Their files, and what dpkg knows of them, beside what is there."""
        listed: list[str] = []
        for path in sorted((self._root / "var/lib/dpkg/info").iterdir()):
            if path.name.rpartition(".")[0].partition(":")[0] in names:
                listed.append(str(path.relative_to(self._root)))
                if path.suffix == ".list":
                    listed += [line.lstrip("/") for line in path.read_text().splitlines() if line != "/."]
        # Documentation is not in the image; what dpkg lists of it is missing.
        there = [name for name in listed if os.path.lexists(self._root / name)]
        _copy(self._root, [*_MERGED, *there], target)
        with (target / "var/lib/dpkg/status").open("a") as status:
            status.writelines(f"{self._status[name]}\n\n" for name in sorted(names))


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
    return None if found is None else found[1]


def _names(relation: str) -> list[list[str]]:
    """Of each relation the packages that would do."""
    return [[choice.split()[0].partition(":")[0] for choice in one.split("|")] for one in relation.split(",") if one.strip()]


def _copy(source: Path, names: list[str], target: Path) -> None:
    read = ["tar", "-C", str(source), "--no-recursion", "--verbatim-files-from", "-T-", "-cf", "-"]
    with subprocess.Popen(read, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        with subprocess.Popen(["tar", "-C", str(target), "-xpf", "-"], stdin=reader.stdout) as writer:
            assert reader.stdin is not None
            reader.stdin.write("".join(f"{name}\n" for name in dict.fromkeys(names)).encode())
            reader.stdin.close()
            assert writer.wait(120) == 0
        assert reader.wait(120) == 0


class Bases:
    """Makes them in `room` and puts them into a registry. `base`, `tiny`: the files of Corral's images; `debs`: packages as they were downloaded."""

    def __init__(self, room: Path, registry: Registry, *, base: Path, tiny: Path, debs: Path) -> None:
        self._room = room
        self._registry = registry
        self._base = base
        self._packages = Packages(base)
        busybox = Layout(room / "busybox")
        busybox.layer(lambda root: shutil.copytree(tiny, root, symlinks=True, dirs_exist_ok=True) and None)
        self._push(busybox, "library/busybox:1.36", "--config.env=PATH=/bin", "--config.cmd=sh")
        self._core = self._packages.needed(_CORE)
        self._debian = Layout(room / "debian")
        self._debian.layer(lambda root: self._install_debian(root, debs))
        self._push(
            self._debian, "library/debian:bookworm-slim", "--config.env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "--config.cmd=bash"
        )
        python = self._on_debian("python", lambda root: self._install(root, _PYTHON))
        self._push(python, "library/python:3.11-slim", "--config.env=LANG=C.UTF-8", "--config.env=PYTHONDONTWRITEBYTECODE=1", "--config.cmd=python3")
        self._push(self._on_debian("node", self._install_node), "library/node:18-slim", "--config.cmd=node")

    def golang(self) -> None:
        """With the host's Go, and of its library what a program with `os` needs."""
        root = Path(program("go", "env", "GOROOT").strip())
        used = program("go", "list", "-deps", "-f", "{{.Dir}}", "os").split()
        tools = [path for path in (root / "pkg/tool").rglob("*") if path.name in ("asm", "buildid", "compile", "link")]
        names = ["bin/go", "VERSION", "go.env", "pkg/include", *(str(Path(path).relative_to(root)) for path in (*used, *tools))]

        def install(image: Path) -> None:
            (image / "usr/local/go").mkdir(parents=True)
            program("tar", "-C", root, "--exclude=testdata", "--exclude=*_test.go", "-cf", self._room / "go.tar", *names)
            program("tar", "-C", image / "usr/local/go", "-xf", self._room / "go.tar")

        path = "--config.env=PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._push(self._on_debian("golang", install), "library/golang:1-bookworm", path, "--config.env=GOTOOLCHAIN=local")

    def uv(self, program: Path) -> None:
        """An image of nothing but uv, as its makers have it."""
        made = Layout(self._room / "uv")
        made.layer(lambda root: shutil.copy(program, root / "uv") and None)
        self._push(made, "astral-sh/uv:latest", "--config.workingdir=/io")

    def _on_debian(self, name: str, change: Callable[[Path], None]) -> Layout:
        shutil.copytree(self._debian.path, self._room / name)
        made = Layout(self._room / name, new=False)
        made.layer(change)
        return made

    def _push(self, layout: Layout, name: str, *options: str) -> None:
        layout.configure(*options)
        self._registry.push(layout, name)

    def _install_debian(self, root: Path, debs: Path) -> None:
        (root / "var/lib/dpkg/info").mkdir(parents=True)
        self._packages.copy(self._core, root)
        own = [path for name in _OWN for path in (name, *(str(below.relative_to(self._base)) for below in sorted((self._base / name).rglob("*"))))]
        _copy(self._base, own, root)
        for directory in ("dev", "proc", "sys", "run", "srv/debs", "srv/wheels"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        (root / "etc/pip.conf").write_text(_PIP)
        (root / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/debs ./\n")
        index = ""
        for name in _OFFERED:
            [deb] = debs.glob(f"{name}_*.deb")
            shutil.copy(deb, root / "srv/debs" / deb.name)
            index += program("dpkg-deb", "-f", deb).rstrip() + f"\nFilename: ./{deb.name}\nSize: {deb.stat().st_size}\n"
            index += f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n\n"
        (root / "srv/debs/Packages").write_text(index)
        wheel(root / "srv/wheels", "greeting", "1.0", {"greeting.py": "def main(): print('hello')\n"}, script="greeting:main")
        wheel(root / "srv/wheels", "counting", "2.1", {"counting/__init__.py": "UP_TO = 10\n", "counting/data.txt": "1 2 3\n"})

    def _install(self, root: Path, names: Iterable[str]) -> None:
        self._packages.copy(self._packages.needed(names) - self._core, root)

    def _install_node(self, root: Path) -> None:
        self._packages.copy(self._packages.needed(("nodejs", "npm"), without=_NOT_FOR_NPM) - self._core, root)
        with (root / "etc/passwd").open("a") as passwd, (root / "etc/group").open("a") as group:
            passwd.write("node:x:1200:1200::/home/node:/bin/bash\n")
            group.write("node:x:1200:\n")
        (root / "home/node").mkdir(parents=True)
        os.chown(root / "home/node", 1200, 1200)


def wheel(target: Path, name: str, version: str, files: dict[str, str], *, script: str | None = None) -> None:
    """A package for Python, as pip takes it. Always the same bytes."""
    about = f"{name}-{version}.dist-info"
    files = {**files, f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    files[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if script is not None:
        files[f"{about}/entry_points.txt"] = f"[console_scripts]\n{name} = {script}\n"
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(target / f"{name}-{version}-py3-none-any.whl", "w") as made:
        for path, text in files.items():
            info = zipfile.ZipInfo(path)
            info.external_attr = 0o100644 << 16
            made.writestr(info, text)
