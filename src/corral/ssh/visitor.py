"""Who comes by SSH: one connection, from its login to its end, and what it may ask for."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import asyncssh
from asyncssh.constants import DISC_SERVICE_NOT_AVAILABLE, OPEN_ADMINISTRATIVELY_PROHIBITED, OPEN_CONNECT_FAILED

from corral.aio import Client, Sandbox
from corral.errors import CorralError
from corral.sdk.forward import route
from corral.ssh.forwarding import Forwarded
from corral.ssh.session import Session

ASK_SECONDS = 30.0
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
"""How clients name the sandbox itself."""


class Visitors:
    """All connections, and where the server is asked about them. `questions` is its socket, `api` its URL."""

    def __init__(self, questions: Path, api: str) -> None:
        self._questions = questions
        self._api = api
        self._clients: dict[tuple[str, str], Client] = {}
        self._here = 0
        self._left_at = time.monotonic()

    def came(self) -> None:
        self._here += 1

    def left(self) -> None:
        self._here -= 1
        self._left_at = time.monotonic()

    def absent_for(self, seconds: float) -> bool:
        return not self._here and time.monotonic() - self._left_at > seconds

    async def ask(self, **login: str) -> Guest | None:
        """Whoever that is, if they may come in."""
        async with asyncio.timeout(ASK_SECONDS):
            reader, writer = await asyncio.open_unix_connection(self._questions)
            try:
                writer.write(json.dumps(login).encode() + b"\n")
                answer: dict[str, str] | None = json.loads(await reader.readline() or b"null")
            finally:
                writer.close()
        return None if answer is None else Guest(self._client(answer["credential"], answer["project"]), answer["sandbox"], answer["credential"])

    def _client(self, credential: str, project: str) -> Client:
        """One for each key and project, with its connections."""
        if (credential, project) not in self._clients:
            self._clients[credential, project] = Client(self._api, credential, project=project)
        return self._clients[credential, project]


class Guest:
    """One who has logged in: the API as it is for them, and the sandbox that they came for."""

    def __init__(self, client: Client, id: str, credential: str) -> None:
        self.client, self.credential = client, credential
        self._id = id
        self._sandbox: Sandbox | None = None

    async def sandbox(self) -> Sandbox:
        if self._sandbox is None:
            self._sandbox = await self.client.sandboxes.get(self._id)
        return self._sandbox


class Visitor(asyncssh.SSHServer):
    """One connection. The user's name is `SANDBOX` or `SANDBOX+USER`."""

    def __init__(self, visitors: Visitors) -> None:
        self._visitors = visitors
        self._connection: asyncssh.SSHServerConnection | None = None
        self._guest: Guest | None = None
        self._name, self._user = "", None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._visitors.came()

    def connection_lost(self, exc: Exception | None) -> None:
        self._visitors.left()

    # Who it is

    def begin_auth(self, username: str) -> bool:
        self._name, plus, user = username.partition("+")
        self._user = user if plus else None
        return True

    def password_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        return await self._admit(password=password)

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """Asked before and after the client has signed with the key: the last key that was found good is the one that has signed."""
        return await self._admit(public_key=" ".join(key.export_public_key().decode("ascii", "replace").split()[:2]))

    async def auth_completed(self) -> None:
        """Told to the server, for the event that says so."""
        assert self._guest is not None
        try:
            await self._visitors.ask(sandbox=self._name, credential=self._guest.credential)
        except (OSError, TimeoutError, ValueError) as error:
            raise asyncssh.DisconnectError(DISC_SERVICE_NOT_AVAILABLE, "the server does not answer") from error

    async def _admit(self, **proof: str) -> bool:
        try:
            self._guest = await self._visitors.ask(sandbox=self._name, **proof)
        except (OSError, TimeoutError, ValueError) as error:
            self._say("Corral's server does not answer: try again in a moment")
            raise asyncssh.DisconnectError(DISC_SERVICE_NOT_AVAILABLE, "the server does not answer") from error
        return self._guest is not None

    # What it may ask for

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        assert self._guest is not None
        return Session(self._guest.sandbox, self._user)

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> asyncssh.SSHTCPSession[bytes]:
        if dest_host not in LOCAL:
            raise asyncssh.ChannelOpenError(
                OPEN_ADMINISTRATIVELY_PROHIBITED, f"only the sandbox's own ports can be reached: say localhost, not {dest_host[:100]}"
            )
        # asyncssh takes a coroutine as well, and says to the client what it raises.
        return self._forward(dest_port)  # pyright: ignore[reportReturnType]

    async def _forward(self, port: int) -> asyncssh.SSHTCPSession[bytes]:
        assert self._guest is not None
        try:
            sandbox = await self._guest.sandbox()
            connected = await route((await sandbox.preview(port)).info, self._guest.client.connection).connect()
        except CorralError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from None
        return Forwarded(connected)

    def unix_connection_requested(self, dest_path: str) -> bool:
        raise asyncssh.ChannelOpenError(OPEN_ADMINISTRATIVELY_PROHIBITED, "sockets with a path are not forwarded: use a port")

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        self._say("Corral forwards no ports of yours into a sandbox (-R): what a sandbox may reach is said by its egress policy")
        return False

    def unix_server_requested(self, listen_path: str) -> bool:
        return self.server_requested(listen_path, 0)

    def _say(self, text: str) -> None:
        """A line that the client shows to whoever sits there."""
        if self._connection is not None:
            self._connection.send_debug(text, always_display=True)
