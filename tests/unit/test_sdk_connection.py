"""Which server and which key: argument, environment, file, default; and a key goes only where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.errors import InvalidArgument, SetupError
from corral.sdk.connection import DEFAULT_URL, config_path, discover, save


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CORRAL_URL", "CORRAL_API_KEY", "CORRAL_PROJECT", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("CORRAL_HOME", str(tmp_path / "home"))


def test_with_nothing_set_it_is_this_machine_without_a_key() -> None:
    found = discover()
    assert (found.url, found.key, found.url_from, found.key_from) == (DEFAULT_URL, None, "default", "nowhere")


def test_the_order_is_argument_environment_file(monkeypatch: pytest.MonkeyPatch) -> None:
    path = save("http://file:1", "ck_file")
    assert discover() == discover("http://file:1/", "ck_file").__class__("http://file:1", "ck_file", None, str(path), str(path))
    monkeypatch.setenv("CORRAL_URL", "http://environment:1/")
    monkeypatch.setenv("CORRAL_API_KEY", "ck_environment")
    monkeypatch.setenv("CORRAL_PROJECT", "p")
    found = discover()
    assert (found.url, found.key, found.project, found.url_from) == ("http://environment:1", "ck_environment", "p", "CORRAL_URL")
    found = discover("http://argument:1", "ck_argument", "q")
    assert (found.url, found.key, found.project, found.key_from) == ("http://argument:1", "ck_argument", "q", "argument")


def test_a_key_of_the_file_is_not_sent_to_another_server() -> None:
    save("http://127.0.0.1:7070", "ck_file")
    assert discover("http://elsewhere:7070").key is None


def test_the_admin_key_of_this_machine_stays_on_it(tmp_path: Path) -> None:
    keys = tmp_path / "home" / "keys"
    keys.mkdir(parents=True)
    (keys / "admin").write_text("ck_admin\n")
    assert discover().key == "ck_admin"
    assert discover("http://localhost:9").key == "ck_admin"
    assert discover("https://example.com").key is None


def test_the_file_is_its_owners_only_and_keeps_what_else_it_says(tmp_path: Path) -> None:
    path = config_path()
    path.parent.mkdir(parents=True)
    path.write_text('project = "mine"\nurl = "http://old:1"\n')
    assert save("http://127.0.0.1:7070", 'ck_"odd\\') == path
    assert path.stat().st_mode & 0o777 == 0o600
    found = discover()
    assert (found.url, found.key, found.project) == ("http://127.0.0.1:7070", 'ck_"odd\\', "mine")


def test_a_broken_file_is_named() -> None:
    config_path().parent.mkdir(parents=True)
    config_path().write_text("url = ")
    with pytest.raises(SetupError, match=r"config\.toml"):
        discover()


@pytest.mark.parametrize("url", ["localhost:7070", "ftp://x", "http://", ""])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="URL"):
        discover(url)


def test_a_key_is_not_shown() -> None:
    assert "ck_" not in repr(discover("http://x:1", "ck_secret"))
