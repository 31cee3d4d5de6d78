"""Reading /proc/self/mountinfo."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from corral.node.mounts import Mount, parse, table

names = st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and b"\0" not in name)


def escape(field: bytes) -> bytes:
    """As the kernel's mangle() does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in field)


def test_the_example_of_the_manual_page() -> None:
    line = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n"
    assert parse(line) == Mount(36, 35, Path("/mnt2"), "ext3", "/dev/root", "rw,errors=continue")


def test_no_optional_field_and_several() -> None:
    assert parse(b"1 0 0:1 / / rw - tmpfs none rw").source == "none"
    assert parse(b"1 0 0:1 / /a rw shared:7 master:3 propagate_from:2 - tmpfs tmp rw").target == Path("/a")


@given(st.lists(names, min_size=1, max_size=4), names)
def test_any_name_comes_back(parts: list[bytes], source: bytes) -> None:
    target = b"/" + b"/".join(parts)
    mount = parse(b"5 1 0:9 / %b rw - overlay %b rw,lowerdir=/x" % (escape(target), escape(source)))
    assert (bytes(mount.target), mount.source) == (
        bytes(Path(*[part.decode(errors="surrogateescape") for part in [target]])),
        source.decode(errors="surrogateescape"),
    )


def test_the_root_of_this_machine_is_there() -> None:
    assert any(mount.target == Path("/") for mount in table())
