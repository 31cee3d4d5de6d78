"""The sandbox in which the steps of a build run, one after the other. It is replaced when a step needs other volumes or secrets, and ends with the build."""

from __future__ import annotations

import asyncio
import posixpath
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from corral.control.buildlog import Tail, failed
from corral.control.ports import Download, Node
from corral.control.record import BUILD
from corral.control.roles import Actor
from corral.control.sandboxes import Sandboxes
from corral.control.secrets import Secrets
from corral.control.shelf import SnapshotRecord
from corral.control.snapshots import Snapshots
from corral.control.volumes import Volumes
from corral.errors import BuildFailed, CorralError, FileNotFound, InvalidArgument, NotFound, SandboxEnded
from corral.images.bounded import Bounded
from corral.images.config import ImageConfig
from corral.images.tree import Entry, Tree
from corral.patterns import is_pattern
from corral.schema import file
from corral.schema.image import BuildCreate, BuildSecret, Run
from corral.schema.process import Process, ProcessStart, Stream
from corral.schema.sandbox import SandboxCreate
from corral.schema.volume import VolumeCreate

CACHE_MIB = 16_384
"""The greatest size of a build's cache; it takes only what is in it."""
PIDS = 4096
LONGEST = 86_400.0
"""Seconds after which the sandbox of a build ends by itself, whatever became of the build."""
_PIECE = 1 << 20
_SECRETS = "/dev/corral-secrets"
"""Where files with secrets are while a command runs: in memory, and no part of the disk."""

Needs = tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]
"""Volumes by path, and secrets by variable: what a sandbox can only be given when it is made."""


class Workbench:
    """One build's. `image`: what the next sandbox starts from, as the node knows it."""

    def __init__(
        self,
        actor: Actor,
        wanted: BuildCreate,
        build: str,
        image: str,
        *,
        sandboxes: Sandboxes,
        snapshots: Snapshots,
        volumes: Volumes,
        secrets: Secrets,
        node: Node,
        room: Path,
    ) -> None:
        self._actor = actor
        self._wanted = wanted
        self._build = build
        self._sandboxes = sandboxes
        self._snapshots = snapshots
        self._volumes = volumes
        self._secrets = secrets
        self._node = node
        self._room = room
        self.image = image
        self._box: str | None = None
        self._needs: Needs = ((), ())

    @property
    def most(self) -> int:
        """Bytes that files for one step may take on the host: no more than the disk they are for."""
        return self._wanted.disk << 20

    async def restart_from(self, image: str) -> None:
        """What was done in the sandbox so far is of no use; the next step starts from this image."""
        await self.close()
        self.image = image

    async def close(self) -> None:
        """End the sandbox, if there is one."""
        if self._box is not None:
            box, self._box = self._box, None
            with suppress(NotFound):
                await asyncio.shield(self._sandboxes.delete(self._actor, box))

    async def keep(self, config: ImageConfig) -> SnapshotRecord:
        """A layer of what the sandbox's disk is now."""
        record = await self._snapshots.layer(self._actor, await self._open(self._needs), config)
        self.image = record.id
        return record

    # Steps

    async def run(self, step: Run, config: ImageConfig, tail: Tail, binds: Mapping[str, tuple[Path, bool]], workdirs: Sequence[tuple[str, str]] = ()) -> int:
        """Run a command to its end; its exit code. `binds`: tar files by the absolute path at which they appear, and whether that is a directory.

        `workdirs` are made before, in the sandbox that the command gets.
        """
        await self._make_caches(step)
        volumes = tuple(sorted((config.absolute(path), f"build-cache-{name}"[:63]) for path, name in step.caches.items()))
        shown = [secret for secret in step.secrets if await self._has(secret)]
        variables = [(secret.env, secret.name) for secret in shown if secret.env is not None]
        box = await self._open((volumes, tuple(sorted(variables))))
        await self.mkdirs(workdirs)
        if config.user not in (None, "root", "0"):
            await self._hand_over(box, [path for path, _ in volumes], config.user)
        undo = [await self._bind(box, target, tar, directory=directory) for target, (tar, directory) in binds.items()]
        undo += await self._show_secrets(box, step, config)
        try:
            return await self._run(box, step, config, tail)
        finally:
            for command in reversed(undo):
                await asyncio.shield(command())

    async def _run(self, box: str, step: Run, config: ImageConfig, tail: Tail) -> int:
        shell = step.shell or ["/bin/sh", "-c"]
        argv = [*shell, step.command] if isinstance(step.command, str) else step.command
        start = ProcessStart.model_validate(
            {"argv": argv, "env": {**config.env, **step.env}, "cwd": config.workdir or "/", "user": config.user or "root", "timeout": step.timeout}
        )
        book = self._node.processes(box)
        process = await book.start(start)
        async for item in book.raw_output(process.id):
            if not isinstance(item, Process):
                tail.take("stdout" if item.stream is Stream.STDOUT else "stderr", item.data)
        ended = await book.wait(process.id)
        if ended.lost:
            record = await self._sandboxes.get(self._actor.project, box)
            raise SandboxEnded(
                f"the sandbox of the build ended while the step ran: {record.reason or record.state}{f', {record.detail}' if record.detail else ''}",
                hint="give the build more memory" if record.reason == "oom" else None,
                details={"reason": record.reason},
            )
        if ended.timed_out:
            tail.take("stderr", f"\nkilled after {step.timeout:g} s\n".encode())
        return -1 if ended.exit_code is None else ended.exit_code

    async def put(self, tar: Path, target: str, *, owner: str) -> None:
        """Unpack a tar file below a directory. `owner` "": files belong to whom it says."""
        box = await self._open(self._needs)
        await self._node.files(box).tar_in(_at(target), _pieces(tar), user=owner)

    async def mkdirs(self, directories: Sequence[tuple[str, str]]) -> None:
        """Directories and those above them, unless they are there, each for a user; `user:group` too."""
        for path, user in directories:
            box = await self._open(self._needs)
            await self._node.files(box).mkdir(file.Mkdir.model_validate({"path": path, "user": user}))

    async def is_directory(self, path: str) -> bool:
        box = await self._open(self._needs)
        files = self._node.files(box)
        return await files.exists(_at(path)) and (await files.stat(_at(path), follow=True)).type is file.Kind.DIRECTORY

    async def fetch(self, source: str, room: Path) -> Tree:
        """Files of the image, by a path or a pattern, as they are named there. Raises `NotFound` when there is none."""
        files = self._node.files(await self._open(self._needs))
        paths = [source] if not is_pattern(source) else (await files.glob(file.Glob.model_validate({"pattern": source}))).paths
        if not paths:
            raise FileNotFound(f"nothing is like {source[:200]}")
        found = Tree({})
        for number, path in enumerate(paths):
            tar = room.with_name(f"{room.name}-{number}")
            what = await files.stat(_at(path), follow=True)
            name = path.strip("/")
            if what.type is file.Kind.DIRECTORY:
                await _pour(await files.tar_out(_at(path)), tar, self.most)
                found = found.joined(await asyncio.to_thread(Tree.read, tar), name)
            elif what.type is file.Kind.FILE:
                await _pour((await files.read(_at(path)))[1], tar, self.most)
                one = Entry(name, "file", what.mode, what.uid, what.gid, what.modified_at.timestamp(), size=tar.stat().st_size, file=tar)
                found = found.joined(Tree.of(name, one), "")
            else:
                raise InvalidArgument(f"{path[:200]} is neither a file nor a directory")
        return found

    # What a command has besides the image

    async def _make_caches(self, step: Run) -> None:
        for name in step.caches.values():
            volume = f"build-cache-{name}"[:63]
            try:
                self._volumes.get(self._actor.project, volume)
            except NotFound:
                await self._volumes.create(self._actor, VolumeCreate.model_validate({"name": volume, "size": CACHE_MIB}))

    async def _hand_over(self, box: str, caches: Sequence[str], user: str) -> None:
        """New caches belong to the first who uses them."""
        files = self._node.files(box)
        for path in caches:
            if (await files.stat(_at(path))).uid == 0 and await self._is_empty(box, path):
                await files.chown(file.Chown.model_validate({"path": path, "user": user}))

    async def _has(self, wanted: BuildSecret) -> bool:
        """One that is needed and not there is an error later."""
        return wanted.required or any(secret.name == wanted.name for secret in await self._secrets.all(self._actor.project))

    async def _show_secrets(self, box: str, step: Run, config: ImageConfig) -> list[Undo]:
        wanted = [secret for secret in step.secrets if secret.path is not None and await self._has(secret)]
        if not wanted:
            return []
        values = await self._secrets.values(self._actor.project, {secret.name for secret in wanted})
        files = self._node.files(box)
        undo: list[Undo] = []
        for number, secret in enumerate(wanted):
            held, path = f"{_SECRETS}/{number}", config.absolute(secret.path or "")
            undo += await self._missing_parents(box, path)
            await files.write(_at(held), _once(values[secret.name].encode("utf-8", "surrogatepass")), mode=0o400, user=config.user or "root")
            await files.symlink(file.Symlink(target=held, path=path))
            undo.append(self._removal(box, path))
        undo.append(self._removal(box, _SECRETS))
        return undo

    async def _bind(self, box: str, target: str, tar: Path, *, directory: bool) -> Undo:
        files = self._node.files(box)
        gone = self._removal(box, target)
        if directory and await self._is_empty(box, target):
            gone = self._emptying(box, target)
        elif await files.exists(_at(target)):
            raise failed(f"there is something at {target}, where files are to be bound", step=0, text="", before=None, hint="bind them to a path of their own")
        parents = await self._missing_parents(box, target)
        place = target if directory else posixpath.dirname(target)
        await files.tar_in(_at(place), _pieces(tar), user="root")

        async def undo() -> None:
            for command in (gone, *reversed(parents)):
                await command()

        return undo

    async def _is_empty(self, box: str, path: str) -> bool:
        return await self.is_directory(path) and not (await self._node.files(box).list(file.ListFiles.model_validate({"path": path, "limit": 1}))).entries

    def _emptying(self, box: str, path: str) -> Undo:
        async def empty() -> None:
            if self._box == box:
                with suppress(SandboxEnded, NotFound):
                    for entry in (await self._node.files(box).list(file.ListFiles.model_validate({"path": path}))).entries:
                        await self._removal(box, entry.path)()

        return empty

    async def _missing_parents(self, box: str, path: str) -> list[Undo]:
        """Make the directories above a path; what takes those away again that were not there."""
        files, missing = self._node.files(box), list[str]()
        at = posixpath.dirname(path)
        while at != "/" and not await files.exists(_at(at)):
            missing.append(at)
            at = posixpath.dirname(at)
        if not missing:
            return []
        await files.mkdir(file.Mkdir.model_validate({"path": missing[0], "user": "root"}))
        return [self._removal(box, missing[-1])]

    def _removal(self, box: str, path: str) -> Undo:
        async def remove() -> None:
            if self._box == box:
                # What the sandbox's end took along is gone too.
                with suppress(SandboxEnded, NotFound):
                    await self._node.files(box).remove(file.Remove(path=path, path_b64=None, recursive=True, missing_ok=True))

        return remove

    async def _open(self, needs: Needs) -> str:
        if self._box is not None and self._needs == needs:
            return self._box
        if self._box is not None:
            # Never with work in it: a layer is kept after each step.
            await self.close()
        volumes, variables = needs
        wanted = self._wanted
        request = SandboxCreate.model_validate(
            {
                "image": self.image,
                "cpu": min(2, self._sandboxes.cores) if wanted.cpu is None else wanted.cpu,
                "memory": wanted.memory,
                "disk": wanted.disk,
                "pids": PIDS,
                "timeout": LONGEST,
                "tags": {BUILD: self._build},
                "user": "root",
                "workdir": "/",
                "egress": wanted.egress,
                "sudo": False,
                "hostname": "build",
                "wait": 600,
                "volumes": {path: {"volume": name} for path, name in volumes},
                "secrets": [{"name": name, "env": variable} for variable, name in variables],
            }
        )
        self._box = (await self._sandboxes.create(self._actor, request, build=True)).id
        self._needs = needs
        return self._box

    def scratch(self) -> tempfile.TemporaryDirectory[str]:
        """Room on the host for a tar file."""
        self._room.mkdir(mode=0o700, parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=self._room)


class Undo(Protocol):
    """Something that is done at the end of a step."""

    async def __call__(self) -> None: ...


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as content:
        while piece := await asyncio.to_thread(content.read, _PIECE):
            yield piece


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def explain(error: CorralError, *, step: int, text: str, before: str | None, output: str) -> CorralError:
    """An error of a step, with what the step was; what Corral did wrong stays what it is."""
    if isinstance(error, BuildFailed) and error.details["step"]:
        return error
    if isinstance(error, BuildFailed):
        return failed(error.message, step=step, text=text, before=before, output=output, hint=error.hint)
    if error.status < 500 or isinstance(error, SandboxEnded):
        return failed(error.message, step=step, text=text, before=before, output=output, hint=error.hint)
    return error


async def _pour(download: Download, target: Path, most: int) -> None:
    try:
        with Bounded(target, most) as out:
            async for piece in download:
                await asyncio.to_thread(out.write, piece)
    finally:
        await download.aclose()


def _at(path: str) -> file.At:
    return file.At(path=path, path_b64=None)
