"""A virtual environment below an image's root, of wheels that the host's pip fetches.

Wheels only, of exact versions with their digests, fetched with the host's settings and unpacked from outside: nothing of them runs while an image is made.
It belongs to `user` and is first on PATH: `pip install` anywhere in the sandbox installs into it.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from corral import spawn
from corral.errors import SetupError

VENV = Path("/opt/venv")
_PYTHON = Path("/usr/bin/python3")
_USER = 1000


def fill(root: Path, packages: Path, *, name: str, compiled: bool = True) -> Path:
    """Make the environment of image `name` with what a file of packages lists; returns where it is. Raises `SetupError`.

    `compiled`: with byte code, without which the first import of many modules takes seconds.
    """
    version = _python_version(name)
    venv = root / VENV.relative_to("/")
    site = venv / f"lib/python{version}/site-packages"
    site.mkdir(parents=True)
    # Not as the umask of whoever runs this would have it.
    venv.parent.chmod(0o755)
    venv.chmod(0o755)
    install(site, packages, name=name)
    _programs(site / "bin", venv / "bin", version)
    shutil.rmtree(site / "share", ignore_errors=True)
    for tests in [path for path in site.rglob("tests") if path.is_dir()]:
        # A sixth of all files, which nobody runs here.
        shutil.rmtree(tests, ignore_errors=True)
    (venv / "pyvenv.cfg").write_text(f"home = {_PYTHON.parent}\ninclude-system-site-packages = false\nversion = {version}\n")
    if compiled:
        # Where the image's python will look for what it has compiled, with the names of files as it will see them.
        argv = [str(_PYTHON), "-m", "compileall", "-q", "-j", "0", "-s", str(root), "-p", "/", str(site)]
        # Some packages carry files that are no Python, as templates or for tests: then its exit code is not 0.
        spawn.run(argv, timeout=900)
    return venv


def own(venv: Path) -> None:
    """Give all of it to the image's user."""
    for directory, directories, files in os.walk(venv):
        for name in (".", *directories, *files):
            os.lchown(Path(directory, name), _USER, _USER)


def install(target: Path, packages: Path, *, name: str) -> None:
    """Unpack what a file of packages lists into a directory. Raises `SetupError`."""
    pip = Path(sysconfig.get_path("purelib")) / "pip"
    if not pip.is_dir():
        raise SetupError(f"there is no pip beside Corral ({sys.prefix})", hint=f"{sys.executable} -m ensurepip")
    argv = [
        *(str(_PYTHON), str(pip), "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", str(target), "--no-compile", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(packages)),
    ]
    try:
        spawn.run(argv, timeout=1800).check()
    except spawn.ProgramFailed as error:
        raise SetupError(f"the packages of the image `{name}` can't be installed: {error.message}", hint="check that pip reaches a package index") from error


def _python_version(name: str) -> str:
    """Of the host's own python, which is also the image's since that is of the same release. As 3.11."""
    found = spawn.run([str(_PYTHON), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout=30)
    version = found.stdout.decode().strip()
    if found.code or tuple(map(int, version.split("."))) < (3, 11):
        raise SetupError(f"the image `{name}` needs a release whose python3 is 3.11 or newer", hint="apt-get install python3, on Debian 12 or newer")
    return version


def _programs(unpacked: Path, target: Path, version: str) -> None:
    """Programs of the packages, which name the image's python in place of the one that unpacked them."""
    target.mkdir()
    for name in ("python", "python3", f"python{version}"):
        (target / name).symlink_to(_PYTHON)
    for program in unpacked.iterdir():
        content = program.read_bytes()
        if content.startswith(b"#!") and b"python" in content.partition(b"\n")[0]:
            program.write_bytes(b"#!%b/bin/python\n%b" % (os.fsencode(VENV), content.partition(b"\n")[2]))
        program.chmod(0o755)
        program.rename(target / program.name)
    unpacked.rmdir()
