"""The image `tiny`: one static busybox and links to it. No libc, no package manager, no user but root."""

from __future__ import annotations

import shutil
from pathlib import Path

from corral import spawn
from corral.errors import SetupError
from corral.images.recipe import Defaults, OnLine

_USERS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = "root:x:0:\nnobody:x:65534:\n"


def key(*, host_mirrors: bool) -> str:  # noqa: ARG001 - one signature for all recipes
    """Mirrors make no difference to it."""
    return "tiny-1"


def build(root: Path, *, cache: Path, on_line: OnLine, host_mirrors: bool) -> Defaults:  # noqa: ARG001
    """See `Recipe.build`. Takes a static /bin/busybox of the host, else the package `busybox-static`, which need not be installed."""
    for directory in ("bin", "dev", "etc", "proc", "root", "sys", "tmp"):
        (root / directory).mkdir()
    (root / "tmp").chmod(0o1777)
    (root / "root").chmod(0o700)
    busybox = root / "bin" / "busybox"
    shutil.copyfile(_busybox(cache, on_line), busybox)
    busybox.chmod(0o755)
    for applet in spawn.run([str(busybox), "--list"], timeout=30).check().stdout.decode().split():
        link = root / "bin" / applet
        if not link.exists():
            link.symlink_to("busybox")
    (root / "etc" / "passwd").write_text(_USERS)
    (root / "etc" / "group").write_text(_GROUP)
    return Defaults(env={"PATH": "/bin", "HOME": "/root"}, user="root", workdir="/", command=("/bin/sh",))


def _busybox(cache: Path, on_line: OnLine) -> Path:
    kept = cache / "busybox-static"
    if kept.exists():
        return kept
    found = next((path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists() and _is_static(path)), None)
    aside = cache / "busybox-static.new"
    if found:
        shutil.copyfile(found, aside)
    else:
        on_line("image tiny: downloading the package busybox-static")
        _download(cache / "busybox-static.unpacked", aside)
    if not _is_static(aside):
        raise SetupError("the busybox found is not statically linked", hint="apt-get install busybox-static, then run `corral setup` again")
    aside.chmod(0o755)
    return aside.rename(kept)


def _download(scratch: Path, target: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        # apt fetches as its own user when it can, and complains when it can't write here.
        argv = ["apt-get", "-o", "APT::Sandbox::User=root", "download", "busybox-static"]
        fetched = spawn.run(argv, timeout=300, cwd=scratch)
        if fetched.code:
            # A fresh machine has no package lists yet, or old ones.
            spawn.run(["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update"], timeout=900)
            fetched = spawn.run(argv, timeout=300, cwd=scratch)
        packages = list(scratch.glob("*.deb"))
        if fetched.code or not packages:
            detail = fetched.stderr.decode(errors="replace").strip()
            raise SetupError(
                f"the package busybox-static can't be downloaded: {detail}",
                hint="see that `apt-get update` works on this machine (network, proxy, mirror), then run `corral setup` again",
            )
        spawn.run(["dpkg-deb", "-x", str(packages[0]), str(scratch / "root")], timeout=60).check()
        # Its place moved from /bin to /usr/bin with the merged /usr.
        program = next(path for path in (scratch / "root/bin/busybox", scratch / "root/usr/bin/busybox") if path.exists())
        shutil.copyfile(program, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _is_static(program: Path) -> bool:
    """Whether an ELF program names no interpreter (PT_INTERP): then it needs no libc."""
    content = program.read_bytes()
    if content[:5] != b"\x7fELF\x02":
        return False
    headers, size, count = int.from_bytes(content[32:40], "little"), int.from_bytes(content[54:56], "little"), int.from_bytes(content[56:58], "little")
    pt_interp = 3
    kinds = [int.from_bytes(content[at : at + 4], "little") for at in range(headers, headers + size * count, size)]
    return pt_interp not in kinds
