"""What the kernel must be able to do, tried by doing it in a mount or network namespace that ends with the trial. No feature is judged by its name."""

from __future__ import annotations

import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

from corral import spawn
from corral.errors import SetupError
from corral.node import at_rest, cgroup, syscalls
from corral.setup import apt
from corral.setup.check import Finding, Say, ill, well
from corral.setup.machine import Machine

OLDEST = (5, 14)
"""mount_setattr (5.12), LOOP_CONFIGURE (5.8), process_madvise (5.10), cgroup.kill (5.14)."""
FAMILIES = ("x86_64", "aarch64")
OPEN_FILES = 65_536
"""Descriptors: a sandbox takes about ten of the holder and the server."""
MODULES = ("overlay", "loop", "ext4", "xfs", "veth", "nf_tables", "nf_conntrack_netlink", "nfnetlink_log", "sch_tbf")

_OVERLAY = "mount -t tmpfs none . && mkdir l u w m && echo low >l/f && mount -t overlay none m -o lowerdir=l,upperdir=u,workdir=w,xino=on && echo up >m/f && read word <u/f && [ $word = up ]"
_EXT4 = "mount -t tmpfs none . && mkdir m && truncate -s 16M i && mkfs.ext4 -q -O ^has_journal i && mount -o loop i m && echo x >m/f"
_XFS = "mount -t tmpfs none . && mkdir m && truncate -s 320M i && mkfs.xfs -q -m reflink=1 i && mount -o loop i m && echo x >m/f && cp --reflink=always m/f m/g"


def probe_kernel(machine: Machine) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", machine.kernel)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        inside = " (this is a sandbox itself: gVisor's kernel)" if "gvisor" in _read("/proc/version").lower() else ""
        return ill(f"Linux {machine.kernel} is older than {OLDEST[0]}.{OLDEST[1]}{inside}", mend="use a machine with Debian 12, Ubuntu 22.04 or newer")
    if machine.architecture not in FAMILIES:
        return ill(f"machines of the family {machine.architecture} are not served", mend=f"use one of {' or '.join(FAMILIES)}")
    return well(f"Linux {machine.kernel} on {machine.architecture}")


def probe_root(machine: Machine) -> Finding:
    return well("root") if machine.root else ill("this runs as an ordinary user", mend="run it with sudo, or as root")


def probe_rights(machine: Machine) -> Finding:
    """Mounts in a namespace of its own: what a container without rights can't do. And a user namespace, into which gVisor puts itself."""
    tried = _try("mount -t tmpfs none .")
    if tried is None:
        users = _try("true", "--user", "--map-root-user")
        if users is None:
            return well("namespaces and mounts are allowed")
        return ill(f"no user namespaces: {users}", mend="run `sysctl -w user.max_user_namespaces=28633`; leave a chroot, in which the kernel refuses them")
    if machine.container:
        return ill(f"this {machine.container} container may not mount: {tried}", mend="start the container with --privileged, or use the machine itself")
    return ill(f"root may not mount here: {tried}", mend="run Corral on the machine itself, with all capabilities of root")


def probe_cgroups(machine: Machine) -> Finding:
    """Makes and removes a group of a name of its own, with the controllers handed down."""
    try:
        hierarchies = cgroup.find_hierarchies()
        groups = cgroup.Groups(hierarchies, f"{machine.places.tag}-probe")
        groups.open()
        try:
            group = groups.group("box")
            group.create()
            group.limit(cgroup.Limits(memory=64, pids=16, cpu=1.0))
            group.remove()
        finally:
            groups.remove()
    except SetupError as error:
        return ill(error.message, mend=error.hint or "give root writable control groups")
    except OSError as error:
        return ill(
            f"control groups can't be limited: {error}", mend="run as root on the machine itself, or in a container with a writable cgroup namespace of its own"
        )
    return well(f"control groups version {_version(hierarchies)}: memory, cpu and pids")


def _version(hierarchies: cgroup.Hierarchies) -> str:
    match bool(hierarchies.v1), hierarchies.v2 is not None:
        case True, True:
            return "1 and 2 (hybrid)"
        case True, False:
            return "1"
        case _:
            return "2"


def probe_overlay(machine: Machine) -> Finding:
    return _needs("overlay file systems", _OVERLAY, "overlay")


def probe_loop(machine: Machine) -> Finding:
    """A free device from loop-control, its node included (a container may have the one without the other)."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return ill(f"no loop devices: {error}", mend="run `modprobe loop`; in a container hand in /dev")
    try:
        number = syscalls.loop_get_free(control)
    except OSError as error:
        return ill(f"no free loop device: {error}", mend="run `losetup -D` to give back unused ones, or reboot with max_loop=0")
    finally:
        os.close(control)
    node = Path(f"/dev/loop{number}")
    if not node.exists():
        return ill(f"{node} does not appear", mend="mount devtmpfs at /dev; in a container run it with --privileged and -v /dev:/dev")
    return well(f"the next free one is {node}")


def probe_ext4(machine: Machine) -> Finding:
    return _needs("ext4 images on loop devices", _EXT4, "ext4")


def probe_reflink(machine: Machine) -> Finding:
    """XFS with reflinks on a loop device, or a home that can reflink by itself."""
    if _home_reflinks(machine.places.home):
        return well(f"{machine.places.home} shares blocks between files by itself")
    tried = _try(_XFS)
    if tried is None:
        return well("XFS on a loop device")
    return ill(
        f"no file system that shares blocks between files: {tried}",
        mend="run `modprobe xfs` and install xfsprogs; without it disks are copied, which is slower",
    )


def probe_at_rest(machine: Machine) -> Finding:
    """An offer, and never a fault: Corral runs as well without."""
    home = machine.places.home
    try:
        if home.is_dir() and (identifier := at_rest.identifier_of(machine.places)) is not None:
            return well(f"{home} is encrypted; the kernel {'has' if at_rest.is_open(machine.places, identifier) else 'does not have'} its key")
        found = at_rest.obstacle(home)
    except SetupError as error:
        return ill(error.message, mend=error.hint or "put the home back from a backup")
    except OSError as error:
        return well(f"nobody but root can tell: {error}")
    if found is not None:
        return well(f"not to be had here: {found.why}; to have it, {found.mend}")
    return well(f"{home} is not encrypted; a new home here can be, with `corral up --encrypt`")


def probe_open_files(machine: Machine) -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = int(_read("/proc/sys/fs/nr_open") or 0)
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES or (machine.root and ceiling >= OPEN_FILES):
        return well(f"the server may raise its limit to {max(hard, ceiling) if machine.root else hard}")
    return ill(f"at most {hard} open files", mend=f"run `sysctl -w fs.nr_open={OPEN_FILES * 16}` and start again with `ulimit -Hn {OPEN_FILES}`")


def load_modules(machine: Machine, say: Say) -> None:
    """Load what may be a module here and is not there yet. Only the next probe tells whether it helped."""
    known = {line.split()[-1] for line in _read("/proc/filesystems").splitlines()}
    wanted = [name for name in MODULES if name not in known and not Path("/sys/module", name).exists()]
    if not wanted or not Path("/lib/modules", machine.kernel).is_dir():
        return
    if shutil.which("modprobe") is None:
        apt.install(["kmod"], say)
    say(f"loads kernel modules where they are modules: {' '.join(wanted)}")
    for name in wanted:
        spawn.run(["modprobe", "--quiet", name], timeout=60)


def _home_reflinks(home: Path) -> bool:
    place = next(path for path in (home, *home.parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=place) as source, tempfile.TemporaryFile(dir=place) as target:
            source.write(b"x" * 4096)
            source.flush()
            syscalls.reflink(source.fileno(), target.fileno())
    except OSError:
        return False
    return True


def _needs(what: str, script: str, module: str) -> Finding:
    tried = _try(script)
    return well(what) if tried is None else ill(f"no {what}: {tried}", mend=f"run `modprobe {module}`, or use a kernel that has it")


def _try(script: str, *namespaces: str) -> str | None:
    """Run a shell script in namespaces of its own (a mount namespace unless others are named), in an empty directory; None when it succeeded, else its last words."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return "the program unshare (package util-linux) is missing"
    with tempfile.TemporaryDirectory(prefix="corral-probe-") as directory:
        done = spawn.run([unshare, *(namespaces or ("--mount",)), "sh", "-c", script], timeout=60, cwd=directory)
    if done.code == 0:
        return None
    words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"it ended with {done.code}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
