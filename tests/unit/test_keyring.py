"""The key that secrets are encrypted with, and what happens when it is not the one."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.errors import SetupError
from corral.store.keyring import DISK, FileKeyRing, ProgramKeyRing


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "secrets.key"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.binary(max_size=200), about=st.binary(max_size=50))
async def test_what_was_sealed_opens_for_the_same_alone(path: Path, value: bytes, about: bytes) -> None:
    sealed = await FileKeyRing(path).seal(value, about)
    assert await FileKeyRing(path).unseal(sealed, about) == value
    assert len(value) < 4 or value not in sealed
    for other in (about + b"x", b"x" + about):
        with pytest.raises(SetupError):
            await FileKeyRing(path).unseal(sealed, other)


async def test_the_same_value_never_looks_the_same(path: Path) -> None:
    ring = FileKeyRing(path)
    assert len({await ring.seal(b"value", b"") for _ in range(100)}) == 100


@pytest.mark.parametrize("where", [0, 1, 12, 13, -1])
async def test_a_changed_byte_is_seen(path: Path, where: int) -> None:
    ring = FileKeyRing(path)
    sealed = bytearray(await ring.seal(b"value", b"about"))
    sealed[where] ^= 1
    with pytest.raises(SetupError, match="does not open"):
        await ring.unseal(bytes(sealed), b"about")


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"\0" * 12, b"\x02" + b"\0" * 40])
async def test_what_was_never_sealed_does_not_open(path: Path, sealed: bytes) -> None:
    ring = FileKeyRing(path)
    await ring.seal(b"", b"")
    with pytest.raises(SetupError):
        await ring.unseal(sealed, b"")


async def test_only_its_owner_can_read_it(path: Path) -> None:
    sealed = await FileKeyRing(path).seal(b"value", b"")
    assert [file.name for file in path.parent.iterdir()] == ["secrets.key"]
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    path.chmod(0o640)
    with pytest.raises(SetupError, match="chmod 600"):
        await FileKeyRing(path).unseal(sealed, b"")


async def test_a_key_that_is_gone_or_broken_is_said(path: Path) -> None:
    sealed = await FileKeyRing(path).seal(b"value", b"")
    key = path.read_bytes()
    for wrong in (key[:-1], key + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(SetupError, match="32 bytes"):
            await FileKeyRing(path).unseal(sealed, b"")
    path.unlink()
    with pytest.raises(SetupError, match="is missing"):
        await FileKeyRing(path).unseal(sealed, b"")
    path.symlink_to("/dev/zero")
    with pytest.raises(OSError, match="symbolic"):
        await FileKeyRing(path).unseal(sealed, b"")


async def test_a_program_is_asked_for_the_key_once_by_each_server(tmp_path: Path) -> None:
    key = os.urandom(32)
    program = tmp_path / "kms"
    program.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/log\necho {key.hex()}\n")
    program.chmod(0o700)
    sealed = await ProgramKeyRing(str(program), DISK).seal(b"value", b"")
    ring = ProgramKeyRing(str(program), DISK)
    assert [await ring.unseal(sealed, b"") for _ in range(2)] == [b"value"] * 2
    assert (tmp_path / "log").read_text() == "asked\n" * 2
    # The same key in its other form.
    assert await ProgramKeyRing(f"echo {base64.b64encode(key).decode()}", DISK).unseal(sealed, b"") == b"value"


@pytest.mark.parametrize("said", ["", "short", "0" * 63, "0" * 66, "g" * 64, "AAAA", "two words"])
async def test_what_a_program_says_that_is_no_key_is_told_to_nobody(said: str, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(said)
    with pytest.raises(SetupError, match="did not print a key") as caught:
        await ProgramKeyRing(f"cat {tmp_path}/said", DISK).seal(b"value", b"")
    assert not said or said not in f"{caught.value} {caught.value.hint}"


async def test_a_program_that_fails_is_told_by_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="ended with 3: denied") as caught:
        await ProgramKeyRing("printf %064d 7; echo denied >&2; exit 3", DISK).unseal(b"", b"")
    assert "00000000" not in f"{caught.value} {caught.value.hint}"
