"""One sandbox as a client at its door sees it: the record, its processes and files, and who the client says to be."""

from __future__ import annotations

import base64
import binascii
import posixpath
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from corral.api.services import Services
from corral.control.ports import Files, ProcessBook
from corral.control.record import Record
from corral.errors import FileNotFound
from corral.facades.e2b.refusal import Refused
from corral.schema.file import At

_PASSWD_LIMIT = 1 << 20
_REMEMBERED = 4096


def at(path: str) -> At:
    """A path as the files of a sandbox are asked for."""
    return At(path=path, path_b64=None)


class UnknownUser(Exception):
    """There is no such user in the sandbox."""

    def __init__(self, name: str) -> None:
        super().__init__(f"invalid username: '{name}'")
        self.name = name


class Homes:
    """Home directories of users, by sandbox: relative paths begin there, and looking one up costs a read of /etc/passwd. Users that are not there are not remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def of(self, sandbox: str, name: str, files: Files) -> str:
        """Raises `UnknownUser`."""
        home = self._known.get((sandbox, name))
        if home is None:
            home = self._known[sandbox, name] = await _look_up(name, files)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        return home


class Given:
    """What clients said of their processes and the node does not keep, since it may be secret: the variables. For the newest, and until the server ends."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Mapping[str, str]] = OrderedDict()

    def keep(self, process: str, variables: Mapping[str, str]) -> None:
        if variables:
            self._known[process] = variables
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    def of(self, process: str) -> Mapping[str, str]:
        return self._known.get(process, {})


@dataclass(frozen=True)
class Inside:
    """`user`: who the client wants to be; None: the sandbox's default user."""

    services: Services
    homes: Homes
    given: Given
    record: Record
    user: str | None

    @property
    def files(self) -> Files:
        return self.services.node.files(self.record.id)

    @property
    def processes(self) -> ProcessBook:
        return self.services.node.processes(self.record.id)

    @property
    def username(self) -> str:
        return self.user or self.record.user or "root"

    async def home(self) -> str:
        """The user's home directory. Raises `UnknownUser`."""
        return await self.homes.of(self.record.id, self.username, self.files)

    async def path(self, path: str) -> str:
        """The absolute path that is meant: relative ones begin at the user's home, and so does `~`. Raises `UnknownUser`, also where the path would not need it."""
        if path.startswith("~") and path != "~" and not path.startswith("~/"):
            raise Refused(400, f"error resolving path: cannot expand user-specific home dir: '{path}'")
        if posixpath.isabs(path):
            if self.user is not None and self.user != self.record.user:
                await self.home()
            return posixpath.normpath(path)
        return posixpath.normpath(posixpath.join(await self.home(), path[2:] if path.startswith("~") else path))


async def _look_up(name: str, files: Files) -> str:
    """By the sandbox's own /etc/passwd. Numbers are users too, as for the agent."""
    try:
        _, download = await files.read(at("/etc/passwd"), length=_PASSWD_LIMIT)
        text = b"".join([piece async for piece in download]).decode(errors="replace")
    except FileNotFound:
        text = ""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and name in (fields[0], fields[2]):
            return fields[5] or "/"
    if name in ("root", "0"):
        return "/root"
    if name.isdecimal():
        return "/"
    raise UnknownUser(name)


def named_user(authorization: str | None) -> str | None:
    """The user of `Authorization: Basic base64("user:")`, which chooses one and proves nothing."""
    if not authorization:
        return None
    scheme, _, credential = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name = base64.b64decode(credential.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise Refused(401, "the Authorization header is not base64 of `user:`") from None
    return name or None
