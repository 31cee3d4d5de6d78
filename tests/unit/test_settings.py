"""Flag, environment, file, default, in this order, and which of them it was; what one server leaves for others to find it."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from corral import pidfile
from corral.errors import SetupError
from corral.places import Places
from corral.settings import Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('port = 1\nhost = "::1"\nlog_level = "debug"\n')
    return path


def test_the_nearer_wins_and_is_remembered(file: Path) -> None:
    settings = Settings.load({"port": 3, "pool": None}, environ={"CORRAL_PORT": "2", "CORRAL_LOG_LEVEL": "error", "CORRAL_POOL": ""}, file=file)
    assert (settings.port, settings.log_level, settings.host, settings.pool) == (3, "error", "::1", None)
    origin = settings.origin
    assert (origin["port"], origin["log_level"], origin["host"], origin["pool"]) == ("flag", "CORRAL_LOG_LEVEL", str(file), "default")


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({"port": 70_000}, {}, "port.*flag"),
        ({}, {"CORRAL_PORT": "many"}, "port.*CORRAL_PORT"),
        ({"freeze": "sometimes"}, {}, "freeze"),
        ({"host": "0.0.0.0"}, {}, "can be reached from other machines"),
        ({"host": "example.org"}, {}, "can be reached from other machines"),
        ({"disk_key_file": "/key"}, {"CORRAL_DISK_KEY_COMMAND": "kms"}, "both given"),
    ],
)
def test_what_can_not_be_is_refused_with_its_source(flags: dict[str, object], environ: dict[str, str], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        Settings.load(flags, environ=environ)


def test_an_address_for_others_needs_saying_so() -> None:
    assert Settings.load({"host": "0.0.0.0", "listen_anywhere": True}, environ={}).host == "0.0.0.0"
    assert Settings.load({"host": "127.0.0.9"}, environ={}).host == "127.0.0.9"


@pytest.mark.parametrize("text", ["port = ", "prot = 1\n", "[port]\n"])
def test_a_file_that_is_wrong_is_named(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(SetupError, match=r"config\.toml"):
        Settings.load(environ={}, file=file)


def test_a_file_that_was_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="none"):
        Settings.load(environ={}, file=tmp_path / "none")


def test_one_server_for_each_home(tmp_path: Path) -> None:
    places = Places(tmp_path / "home")
    assert pidfile.occupant(places) is None
    with pidfile.occupy(places) as lock:
        lock.announce("http://127.0.0.1:1")
        assert pidfile.occupant(places) == pidfile.Occupant(os.getpid(), "http://127.0.0.1:1")
        with pytest.raises(SetupError, match=rf"pid {os.getpid()} at http://127.0.0.1:1"), pidfile.occupy(places):
            raise AssertionError("two servers in one home")
    assert pidfile.occupant(places) is None


def _die_holding(home: Path) -> None:
    with pidfile.occupy(Places(home)):
        os._exit(0)


def test_a_server_that_was_killed_leaves_the_home_free(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_die_holding, args=(tmp_path,))
    process.start()
    process.join()
    assert pidfile.occupant(Places(tmp_path)) is None
    with pidfile.occupy(Places(tmp_path)):
        pass
