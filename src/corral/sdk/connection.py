"""Where the server is and how to prove who we are: argument, environment, file, default, in this order.

`CORRAL_URL`, `CORRAL_API_KEY`, `CORRAL_PROJECT`; then `~/.config/corral/config.toml` (under sudo also the calling user's); then, on the
machine of the server, the admin key it keeps in its home. A key found in a file goes only to the server it was written for.
"""

from __future__ import annotations

import os
import pwd
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from corral.errors import InvalidArgument, SetupError
from corral.places import Places, default_home

DEFAULT_URL = "http://127.0.0.1:7070"


@dataclass(frozen=True)
class Connection:
    """A server and a credential. The `*_from` words say where each was found, for `corral doctor`."""

    url: str
    key: str | None = None
    project: str | None = None
    url_from: str = "argument"
    key_from: str = "argument"

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"{self.url!r} is not the URL of a Corral server", hint=f"it looks like {DEFAULT_URL}")

    def __repr__(self) -> str:
        return f"Connection({self.url!r}, key from {self.key_from})"


def discover(url: str | None = None, key: str | None = None, project: str | None = None) -> Connection:
    """Fill in what was not given."""
    file, where = _config()
    file_url = file.get("url", DEFAULT_URL)
    if url is not None:
        url_from = "argument"
    elif url := os.environ.get("CORRAL_URL"):
        url_from = "CORRAL_URL"
    elif where is not None and "url" in file:
        url, url_from = file_url, str(where)
    else:
        url, url_from = DEFAULT_URL, "default"
    url = url.rstrip("/")
    if key is not None:
        key_from = "argument"
    elif key := os.environ.get("CORRAL_API_KEY"):
        key_from = "CORRAL_API_KEY"
    elif where is not None and "api_key" in file and file_url.rstrip("/") == url:
        key, key_from = file["api_key"], str(where)
    else:
        key, key_from = _admin_key(url)
    return Connection(url, key, project or os.environ.get("CORRAL_PROJECT") or file.get("project"), url_from, key_from)


def config_path(home: Path | None = None) -> Path:
    """The client's own file: `$XDG_CONFIG_HOME/corral/config.toml`, else below ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME") if home is None else None
    return (Path(base) if base else (home or Path.home()) / ".config") / "corral" / "config.toml"


def is_free(url: str) -> bool:
    """Whether the client's file may be written for this server: it is not there, or names the same one."""
    caller = _sudo_caller()
    known = _read(config_path(Path(caller.pw_dir) if caller else None)).get("url")
    return known is None or known.rstrip("/") == url


def save(url: str, key: str) -> Path:
    """Write the client's file, readable by its owner only; under sudo that is the calling user. Other settings in it are kept."""
    caller = _sudo_caller()
    path = config_path(Path(caller.pw_dir) if caller else None)
    kept = {name: value for name, value in _read(path).items() if name not in ("url", "api_key")}
    made = [parent for parent in (path.parent, path.parent.parent) if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} = {_quoted(value)}\n" for name, value in {"url": url, "api_key": key, **kept}.items())
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        if caller:
            os.fchown(file.fileno(), caller.pw_uid, caller.pw_gid)
    if caller:
        for parent in made:
            os.chown(parent, caller.pw_uid, caller.pw_gid)
    fresh.replace(path)
    return path


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _config() -> tuple[dict[str, str], Path | None]:
    caller = _sudo_caller()
    for path in (config_path(), *([config_path(Path(caller.pw_dir))] if caller else [])):
        if found := _read(path):
            return found, path
    return {}, None


def _read(path: Path) -> dict[str, str]:
    try:
        table = cast("dict[str, object]", tomllib.loads(path.read_text()))
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupError(f"{path} can't be read: {error}", hint="mend or remove it; `corral up` writes a new one") from None
    return {name: value for name, value in table.items() if isinstance(value, str)}


def _sudo_caller() -> pwd.struct_passwd | None:
    name = os.environ.get("SUDO_USER")
    if os.geteuid() != 0 or not name or name == "root":
        return None
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _admin_key(url: str) -> tuple[str | None, str]:
    """The key that the server on this machine made for its operator. Never sent to another machine."""
    if urlsplit(url).hostname not in ("127.0.0.1", "::1", "localhost"):
        return None, "nowhere"
    path = Places(default_home()).keys / "admin"
    try:
        return path.read_text().strip(), str(path)
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None, "nowhere"
