"""Where control groups are found, and what is written to them, on a tree like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.errors import SetupError
from corral.node.cgroup import Group, Groups, Hierarchies, Limits, parse_mounts

HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:4 - cgroup cgroup rw,pids
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "26 22 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


def test_version_one_controllers_are_found_where_they_are_mounted() -> None:
    v1, v2 = parse_mounts(HYBRID)
    assert v1 == {
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct"),
        "memory": Path("/sys/fs/cgroup/memory"),
        "pids": Path("/sys/fs/cgroup/pids"),
    }
    assert v2 == Path("/sys/fs/cgroup/unified")


def test_version_two_is_found() -> None:
    assert parse_mounts(UNIFIED) == ({}, Path("/sys/fs/cgroup"))


@pytest.fixture
def unified(tmp_path: Path) -> Hierarchies:
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    return Hierarchies({}, tmp_path, frozenset({"memory", "cpu", "pids"}))


def _files(group: Path, **contents: str) -> None:
    group.mkdir(parents=True)
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max", "cpu.weight", "pids.max"):
        (group / name).touch()
    for name, text in contents.items():
        (group / name.replace("__", ".")).write_text(text)


def test_limits_are_written_as_version_two_wants_them(unified: Hierarchies) -> None:
    assert unified.v2 is not None
    group = unified.v2 / "tag" / "one"
    _files(group)
    Group(unified, "tag/one").limit(Limits(memory=64, pids=100, cpu=1.5, weight=20))
    written = {path.name: path.read_text() for path in group.iterdir()}
    assert written == {
        "memory.max": str(64 << 20),
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "cpu.max": "150000 100000",
        "cpu.weight": "20",
        "pids.max": "100",
    }


def test_only_what_changes_is_written_again(unified: Hierarchies) -> None:
    assert unified.v2 is not None
    files = unified.v2 / "tag" / "one"
    _files(files)
    group = Group(unified, "tag/one")
    group.limit(Limits(memory=64, pids=100, cpu=1.5))
    for path in files.iterdir():
        path.write_text("untouched")
    group.limit(Limits(memory=64, pids=200, cpu=1.5))
    assert {path.name for path in files.iterdir() if path.read_text() != "untouched"} == {"pids.max"}


def test_limits_that_could_not_be_set_are_set_again(unified: Hierarchies) -> None:
    assert unified.v2 is not None
    files = unified.v2 / "tag" / "one"
    _files(files)
    group = Group(unified, "tag/one")
    group.limit(Limits(memory=64, pids=100))
    (files / "pids.max").unlink()
    with pytest.raises(FileNotFoundError):
        group.limit(Limits(memory=32, pids=200))
    (files / "pids.max").touch()
    (files / "memory.max").write_text("")
    group.limit(Limits(memory=32, pids=200))
    assert ((files / "memory.max").read_text(), (files / "pids.max").read_text()) == (str(32 << 20), "200")


def test_use_and_kills_are_read_as_version_two_shows_them(unified: Hierarchies) -> None:
    assert unified.v2 is not None
    _files(
        unified.v2 / "tag" / "one",
        cpu__stat="usage_usec 2500000\nuser_usec 1\n",
        memory__current="5000\n",
        memory__stat="anon 1000\ninactive_file 2000\n",
        memory__events="low 0\noom 3\noom_kill 2\n",
        pids__current="7\n",
        pids__events="max 4\n",
    )
    group = Group(unified, "tag/one")
    usage = group.usage()
    assert (usage.cpu_seconds, usage.memory, usage.tasks) == (2.5, 3000, 7)
    assert (group.oom_kills(), group.tasks_refused()) == (2, 4)


def test_all_sandboxes_together_weigh_less_than_the_server(unified: Hierarchies) -> None:
    assert unified.v2 is not None
    _files(unified.v2 / "tag", cgroup__subtree_control="")
    Groups(unified, "tag").open()
    assert int((unified.v2 / "tag" / "cpu.weight").read_text()) < 100


def test_a_place_without_rights_is_told_with_a_mend(tmp_path: Path) -> None:
    missing = Hierarchies({}, tmp_path / "missing", frozenset({"memory"}))
    with pytest.raises(SetupError, match="can't be made"):
        Groups(missing, "tag").open()
