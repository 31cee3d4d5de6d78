"""URPC: the sentry's control protocol, and the only module that knows it.

Sources: gVisor `pkg/urpc/urpc.go`, `pkg/control/server`, `runsc/boot/controller.go`, of release-20240729 and of 2026-08. A stream socket without framing: a request is the JSON object
`{"method", "arg"}` with descriptors riding on its first byte, an answer is `{"success", "err", "result"}`. Requests on one connection are answered in order; Go's decoder ignores fields it does not know.
It is an internal interface without a promise, so what differs between versions is found out by doing (`Dialect`) and everything used is tried once at start (`self_test`).
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from corral.errors import PlatformError, SetupError

ANSWER = 4 << 20
"""Bytes in an answer at most: a sentry may have been taken over by its guest."""
CHUNK = 65536
SUN_PATH = 107
"""Bytes in the path of a unix socket at most (sockaddr_un.sun_path, less its end)."""
LOOPBACK = [{"Name": "lo", "Addresses": [{"Address": "127.0.0.1", "PrefixLen": 8}], "Routes": [{"Destination": {"IP": "127.0.0.0", "Mask": "/wAAAA=="}}]}]
SAVE_TIMEOUT = 600.0
"""Seconds for a sandbox's memory to be written or read: gigabytes on a slow disk."""
SEGMENT = 65536
"""Bytes that a sentry may hand to its packet socket at once: the kernel cuts them."""


class UrpcError(PlatformError):
    """The sentry refused a call, broke off, or did not answer in time."""

    code = "urpc"


class SentryGone(UrpcError):
    """There is nobody at the other end, or there was until now: the sentry has ended."""

    code = "sentry_gone"


class UnknownMethod(UrpcError):
    """The sentry has no such method: another version of runsc."""


class Dialect(StrEnum):
    """What differs between versions: the call that sets up the network."""

    SET_NETWORK_ARGS = "containerManager.SetNetworkArgs"
    """Newer ones keep the arguments until the start or the restore. They know the older call too, but it means nothing to what is restored: so this one is tried first."""
    CREATE_LINKS = "Network.CreateLinksAndRoutes"
    """Up to 2024."""


@dataclass(frozen=True)
class Nic:
    """A sandbox's network device: a packet socket on a device of the host, and what the sandbox's own stack is to know of it."""

    packets: socket.socket
    """Bound, with PACKET_VNET_HDR. The sentry takes a copy; another sentry can't take the same."""
    address: str
    mac: bytes
    gateway: str
    gateway_mac: bytes
    mtu: int

    def arguments(self) -> dict[str, Any]:
        """`CreateLinksAndRoutesArgs`. Checksums are made inside: packets of a socket with that header leave with wrong ones otherwise."""
        only_gateway = {"Destination": {"IP": self.gateway, "Mask": _base64(b"\xff" * 4)}, "Gateway": ""}
        link = {
            "Name": "eth0",
            "MTU": self.mtu,
            "Addresses": [{"Address": self.address, "PrefixLen": 32}],
            "Routes": [only_gateway],
            "GSOMaxSize": SEGMENT,
            "TXChecksumOffload": False,
            "RXChecksumOffload": True,
            "LinkAddress": _base64(self.mac),
            "QDisc": 1,
            "Neighbors": [{"IP": self.gateway, "HardwareAddr": _base64(self.gateway_mac)}],
            "NumChannels": 1,
        }
        default = {"Route": {"Destination": {"IP": "0.0.0.0", "Mask": _base64(bytes(4))}, "Gateway": self.gateway}, "Name": "eth0"}
        # Of connections that nobody has any more but that are still being closed, a save shall not fail. It cuts living ones too, so it is for those who looked before.
        return {"FDBasedLinks": [link], "Defaultv4Gateway": default, "DisconnectOk": True}


class Answers:
    """Cuts a byte stream into JSON objects. Pure: `feed` bytes, get whole answers."""

    def __init__(self, limit: int = ANSWER) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Raises `UrpcError` for what is too long or no JSON object."""
        self._buffer += data
        if len(self._buffer) > self._limit:
            raise UrpcError(f"an answer of the sentry is longer than {self._limit} bytes")
        answers: list[dict[str, Any]] = []
        # An object ends with a brace, so anything else can't complete one and is not parsed again and again.
        while self._buffer and b"}" in data:
            try:
                text = self._buffer.decode().lstrip()
                value, end = json.JSONDecoder().raw_decode(text)
            except UnicodeDecodeError as error:
                if error.end < len(self._buffer):
                    raise UrpcError("an answer of the sentry is not UTF-8") from None
                break
            except json.JSONDecodeError:
                break
            except RecursionError:
                raise UrpcError("an answer of the sentry is nested too deeply") from None
            if not isinstance(value, dict):
                raise UrpcError("an answer of the sentry is not an object")
            answers.append(cast("dict[str, Any]", value))
            self._buffer = bytearray(text[end:].lstrip().encode())
        return answers


class Connection:
    """One connection to a sentry. Calls on it wait for each other."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._answers = Answers()
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: str, *, timeout: float) -> Connection:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(0)
        directory = -1
        try:
            address = path
            if len(os.fsencode(path)) > SUN_PATH:
                directory = os.open(Path(path).parent, os.O_PATH | os.O_DIRECTORY)
                address = f"/proc/self/fd/{directory}/{Path(path).name}"
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(connection, address)
        except OSError as error:
            connection.close()
            raise SentryGone(f"the sentry's control socket {path} can't be reached: {error}") from error
        except BaseException:
            connection.close()
            raise
        finally:
            if directory >= 0:
                os.close(directory)
        return cls(connection)

    async def call(self, method: str, arg: Any = None, *, fds: Sequence[int] = (), timeout: float) -> Any:
        """Call and wait. After a time-out or a break the connection is of no more use and closed."""
        data = json.dumps({"method": method, "arg": arg}).encode()
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    answer = await self._exchange(data, fds)
            except TimeoutError:
                self.close()
                raise UrpcError(f"{method} was not answered within {timeout:g} s") from None
            except OSError as error:
                self.close()
                raise SentryGone(f"{method}: {error}") from error
            except BaseException:
                self.close()
                raise
        if answer.get("success") is True:
            return answer.get("result")
        # What follows the first line is where in the sentry it happened.
        reason = str(answer.get("err", "no reason given")).partition("\n")[0][:2000]
        if "unknown method" in reason:
            raise UnknownMethod(f"{method}: {reason}")
        raise UrpcError(f"{method}: {reason}")

    async def _exchange(self, data: bytes, fds: Sequence[int]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        # The buffer of an idle connection takes at least the first bytes at once, and the descriptors ride on them.
        sent = socket.send_fds(self._socket, [data], list(fds)) if fds else self._socket.send(data)
        if sent < len(data):
            await loop.sock_sendall(self._socket, data[sent:])
        while True:
            chunk = await loop.sock_recv(self._socket, CHUNK)
            if not chunk:
                raise ConnectionResetError("the sentry closed the connection")
            if answers := self._answers.feed(chunk):
                return answers[0]

    def close(self) -> None:
        self._socket.close()


@dataclass
class Sentry:
    """The calls Corral makes, by what they mean. `cid` is the root container's id."""

    connection: Connection
    cid: str
    dialect: Dialect = Dialect.SET_NETWORK_ARGS

    async def set_up_network(self, nic: Nic | None) -> None:
        """Give the sandbox its `lo` and, if there is one, its `eth0`; before `start` only. Learns the dialect. A sentry that refuses it is of no more use."""
        arguments = {"LoopbackLinks": LOOPBACK, **({} if nic is None else nic.arguments())}
        fds = () if nic is None else (nic.packets.fileno(),)
        for dialect in (self.dialect, *(other for other in Dialect if other is not self.dialect)):
            try:
                await self.connection.call(dialect, arguments, fds=fds, timeout=10)
            except UnknownMethod:
                continue
            self.dialect = dialect
            return
        raise UnknownMethod("the sentry knows no call to set up its network", hint="use a runsc between 20240729 and the newest Corral was tested with")

    async def start(self) -> None:
        """Start the root container: its program runs."""
        await self.connection.call("containerManager.StartRoot", self.cid, timeout=20)

    async def pause(self) -> None:
        """Stop all of the sandbox's tasks. Pauses count: each needs its `resume`."""
        await self.connection.call("containerManager.Pause", timeout=20)

    async def resume(self) -> None:
        """Let its tasks go on. Only for one that is paused: the sentry counts, and ends itself below zero."""
        await self.connection.call("containerManager.Resume", timeout=20)

    async def save(self, files: Sequence[int]) -> None:
        """Write its memory into three files (state, list of pages, pages) and go on. Its tasks stand still meanwhile. Raises `UrpcError` with what can't be saved; then it goes on too."""
        arguments = {
            "metadata": {"compression": "none"},
            "have_pages_file": True,
            "Resume": True,
            # The older name and the newer one of the same thing.
            "MemoryFileSaveOpts": {"ExcludeCommittedZeroPages": False},
            "app_mf_exclude_committed_zero_pages": False,
        }
        await self.connection.call("containerManager.Checkpoint", arguments, fds=files, timeout=SAVE_TIMEOUT)

    async def restore(self, files: Sequence[int]) -> None:
        """In place of `start`: what `save` wrote goes on. The connection is of no more use afterwards, and a sentry that refuses isn't either."""
        await self.connection.call("containerManager.Restore", {"HavePagesFile": True, "HaveDeviceFile": False}, fds=files, timeout=SAVE_TIMEOUT)

    async def state(self) -> int:
        """The container's state as the sentry sees it; the cheapest sign of life."""
        return int(await self.connection.call("containerManager.ContainerRuntimeState", self.cid, timeout=5))

    async def processes(self) -> list[Any]:
        """All processes of the container: uid, pid, ppid, cmd, … as the sandbox kernel sees them."""
        return list(await self.connection.call("containerManager.Processes", self.cid, timeout=10))


async def self_test(sentry: Sentry, program: Path) -> None:
    """Whether a started sentry answers as this module understands it. Raises `SetupError`."""
    try:
        await sentry.state()
        shown = any(process["pid"] == 1 for process in await sentry.processes())
    except (UrpcError, TypeError, ValueError, KeyError) as error:
        raise SetupError(f"{program} does not speak URPC as Corral knows it: {error}", hint="use a runsc between 20240729 and the newest tested") from error
    if not shown:
        raise SetupError(f"{program} does not show the sandbox's first process", hint="use a runsc between 20240729 and the newest tested")


def _base64(data: bytes) -> str:
    """As Go's JSON has bytes."""
    return base64.b64encode(data).decode()
