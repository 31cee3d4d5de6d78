"""The image `code-interpreter`: `base`, and over it a virtual environment with Jupyter kernels and what people who look at data expect.

It belongs to `user` and is first on PATH: `pip install` anywhere in the sandbox installs what the kernels then can import. Wheels only, of exact versions,
fetched by pip with the host's settings and unpacked from outside: nothing of them runs while the image is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from corral import spawn
from corral.errors import SetupError
from corral.images import base
from corral.images.host_mirrors import MARK
from corral.images.recipe import Defaults, OnLine

BENEATH = "base"
"""The image whose files it lies on."""
VENV = Path("/opt/venv")
_PACKAGES = Path(__file__).with_name("packages.txt")
_VERSION = 1
"""Raise it with every change of this module that should reach images already built."""
_PYTHON = Path("/usr/bin/python3")
_USER = 1000

_KERNELS = {
    "bash": {"display_name": "Bash", "language": "bash", "argv": [f"{VENV}/bin/python", "-m", "bash_kernel", "-f", "{connection_file}"]},
    "deno": {
        "display_name": "Deno",
        "language": "typescript",
        "argv": [f"{VENV}/bin/deno", "jupyter", "--kernel", "--conn", "{connection_file}"],
        "env": {"DENO_NO_UPDATE_CHECK": "1"},
    },
}


def key(*, host_mirrors: bool) -> str:
    below, mark, mirrors = base.key(host_mirrors=host_mirrors).partition(MARK)
    parts = [_VERSION, below, hashlib.sha256(_PACKAGES.read_bytes()).hexdigest(), _KERNELS]
    return "code-interpreter-" + hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16] + mark + mirrors


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG001 - one signature for all recipes
    """See `Recipe.build`. pip keeps what it downloads where it always does."""
    version = _python_version()
    venv = root / VENV.relative_to("/")
    packages = venv / f"lib/python{version}/site-packages"
    packages.mkdir(parents=True)
    # Not as the umask of whoever runs this would have it.
    venv.parent.chmod(0o755)
    venv.chmod(0o755)
    on_line("image code-interpreter: downloading and unpacking Python packages")
    _install(packages)
    _programs(packages / "bin", venv / "bin", version)
    shutil.rmtree(packages / "share", ignore_errors=True)
    for tests in [path for path in packages.rglob("tests") if path.is_dir()]:
        # A sixth of all files, which nobody runs here.
        shutil.rmtree(tests, ignore_errors=True)
    (venv / "pyvenv.cfg").write_text(f"home = {_PYTHON.parent}\ninclude-system-site-packages = false\nversion = {version}\n")
    for name, spec in _KERNELS.items():
        directory = venv / "share/jupyter/kernels" / name
        directory.mkdir(parents=True)
        (directory / "kernel.json").write_text(json.dumps(spec, indent=2) + "\n")
    on_line("image code-interpreter: compiling them")
    # Where the image's python will look for what it has compiled, with the names of files as it will see them.
    argv = [str(_PYTHON), "-m", "compileall", "-q", "-j", "0", "-s", str(root), "-p", "/", str(packages)]
    # Some packages carry files that are no Python, as templates or for tests: then its exit code is not 0.
    spawn.run(argv, timeout=900)
    for directory, directories, files in os.walk(venv):
        for name in (".", *directories, *files):
            os.lchown(Path(directory, name), _USER, _USER)
    return Defaults(env={"VIRTUAL_ENV": str(VENV), "PATH": f"{VENV}/bin:"}, user="user", workdir="/home/user", command=("/bin/bash", "-l"))


def _python_version() -> str:
    """Of the host's own python, which is also the image's since that is of the same release. As 3.11."""
    found = spawn.run([str(_PYTHON), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], timeout=30)
    version = found.stdout.decode().strip()
    if found.code or tuple(map(int, version.split("."))) < (3, 11):
        raise SetupError("the image `code-interpreter` needs a release whose python3 is 3.11 or newer", hint="apt-get install python3, on Debian 12 or newer")
    return version


def _install(packages: Path) -> None:
    pip = Path(sysconfig.get_path("purelib")) / "pip"
    if not pip.is_dir():
        raise SetupError(f"there is no pip beside Corral ({sys.prefix})", hint=f"{sys.executable} -m ensurepip")
    argv = [
        *(str(_PYTHON), str(pip), "install", "--quiet", "--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", str(packages), "--no-compile", "--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(_PACKAGES)),
    ]
    try:
        spawn.run(argv, timeout=1800).check()
    except spawn.ProgramFailed as error:
        raise SetupError(
            f"the packages of the image `code-interpreter` can't be installed: {error.message}", hint="check that pip reaches a package index"
        ) from error


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
