# Generated from sdk/_async/sandbox.py by scripts/async_to_sync.py: edit that, not this.
"""A sandbox: create it, find it, run things in it, end it. Long since whatever can be asked of one is a method here, with what users must know of it."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self, overload
from weakref import WeakSet

from corral.errors import Conflict, CorralError
from corral.schema.egress import EgressPolicy
from corral.schema.fork import ForkChild, Forks, SandboxFork
from corral.schema.observe import Event, LogLine, Logs, Metrics, Port, Ports, Sample
from corral.schema.preview import Hold, PreviewToken
from corral.schema.preview import Preview as PreviewInfo
from corral.schema.process import Process as ProcessInfo
from corral.schema.process import Processes
from corral.schema.sandbox import Reason, SandboxCreate, SandboxExtend, SandboxPage, SandboxUpdate, State
from corral.schema.sandbox import Sandbox as SandboxInfo
from corral.schema.snapshot import CheckpointCreate, Checkpoints, Diff, Merge, MergeRequest, Rewind, SnapshotCreate
from corral.schema.snapshot import Snapshot as SnapshotInfo
from corral.schema.ssh import SshAccess
from corral.schema.volume import VolumeAttach
from corral.sdk import faults
from corral.sdk._sync import event
from corral.sdk._sync.code import Code
from corral.sdk._sync.egress import SandboxEgress
from corral.sdk._sync.files import Files
from corral.sdk._sync.image import Image
from corral.sdk._sync.preview import Exposed, Preview, Tunnel
from corral.sdk._sync.process import Process
from corral.sdk._sync.run import Callback, Run, start_request
from corral.sdk._sync.service import Supervised
from corral.sdk._sync.snapshot import Snapshot
from corral.sdk._sync.volume import Volume, mount, mounts
from corral.sdk.egress import Egress, policy
from corral.sdk.options import KEEP, Keep
from corral.sdk.result import Result
from corral.sdk.retry import delays
from corral.sdk.secret import NamedSecret, uses

if TYPE_CHECKING:
    from corral.sdk._sync.client import Client

ROOM_SECONDS = 120.0
"""How long a create may take beyond its `wait`."""


class Sandbox:
    """One isolated computer. As a context manager it deletes the sandbox at the end."""

    def __init__(self, client: Client, info: SandboxInfo) -> None:
        self.info = info
        """What the server said last; `refresh()` asks again."""
        self.client = client
        self._transport = client.transport
        self._path = f"/v1/sandboxes/{info.id}"
        self._processes: WeakSet[Process[str] | Process[bytes]] = WeakSet()
        self.files = Files(self._transport, self._path)
        self.code = Code(self._transport, self._path)
        self.services = Supervised(self._transport, self._path)
        self.egress = SandboxEgress(self._transport, self._path, info.id)

    @classmethod
    def create(
        cls,
        image: str | Snapshot | Image | None = None,
        *,
        name: str | None = None,
        cpu: float = 1,
        memory: int = 512,
        disk: int = 4096,
        pids: int = 1024,
        timeout: float | None = 3600,
        idle_timeout: float | None = None,
        on_timeout: Literal["terminate", "stop", "pause"] = "terminate",
        checkpoint_every: int | None = None,
        volumes: Mapping[str, Volume | str] | None = None,
        env: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        user: str | None = None,
        workdir: str | None = None,
        hostname: str | None = None,
        egress: Egress | EgressPolicy | Mapping[str, Any] | str | None = None,
        secrets: Sequence[NamedSecret] = (),
        ports: Sequence[int] | None = None,
        public_ports: Sequence[int] | Literal["all"] = (),
        on_request: Literal["resume", "start"] = "resume",
        sudo: bool = True,
        freeze: bool = True,
        reserve: bool = False,
        wait: float = 0,
        client: Client | None = None,
    ) -> Self:
        """A running sandbox.

        `image` is a name or id of an image, a snapshot, or an `Image`, which is built if it is not there. `cpu` in cores, `memory` and `disk` in MiB, times in seconds; `timeout=None` never ends it;
        `checkpoint_every`: a checkpoint after every so many commands; `volumes` by the path at which each appears; `wait` is for room on a full node.
        `egress` is what it may reach: `Egress.allow("api.example.com")`, or "none", "public", "all"; None: the server's default.
        `freeze=False`: it never sleeps while nobody uses it, so timers inside are never late; `reserve=True`: no other is started on memory that it may still take.
        `ports`: the only ones that previews and tunnels lead to; None: any. `public_ports`: those whose previews need no key, or "all"; `on_request="start"`: a request to a preview starts it when it is stopped, and not only resumes a paused one.
        `secrets` become environment variables inside: `Secret.named("TOKEN", expose=True)`.
        Raises `ImageNotFound`, `InvalidArgument`, `QuotaExceeded`, `Unavailable` (no server, or no room), `Unsupported`.
        """
        client = client or _default()
        named = (image.build(client=client)).id if isinstance(image, Image) else _ref(image)
        given = {
            "image": named,
            "checkpoint_every": checkpoint_every,
            "volumes": volumes and mounts(volumes),
            "name": name,
            "env": env and dict(env),
            "tags": tags and dict(tags),
            "user": user,
            "workdir": workdir,
            "hostname": hostname,
        }
        request = faults.build(
            SandboxCreate,
            cpu=cpu,
            memory=memory,
            disk=disk,
            pids=pids,
            timeout=timeout,
            idle_timeout=idle_timeout,
            on_timeout=on_timeout,
            ports=None if ports is None else list(ports),
            public_ports=public_ports if public_ports == "all" else list(public_ports),
            on_request=on_request,
            sudo=sudo,
            freeze=freeze,
            reserve=reserve,
            wait=wait,
            **({"secrets": uses(secrets)} if secrets else {}),
            **({} if egress is None else {"egress": policy(egress)}),
            **{field: value for field, value in given.items() if value is not None},
        )
        ask = Creation(client, faults.encode(request), wait + ROOM_SECONDS)
        try:
            made = cls(client, ask.send())
            if isinstance(image, Image):
                image.give_files(made)
            return made
        except Exception:
            raise
        except BaseException:  # cancelled, or Ctrl-C: nobody would know of a sandbox that is being made now
            ask.undo()
            raise

    @classmethod
    def get(cls, id_or_name: str, *, client: Client | None = None) -> Self:
        """The sandbox of that id or name; `NotFound` when there is none."""
        client = client or _default()
        return cls(client, faults.decode(SandboxInfo, client.transport.call("GET", "/v1/sandboxes/" + faults.segment(id_or_name))))

    @classmethod
    def list(
        cls, *, tags: Mapping[str, str] | None = None, state: State | str | Sequence[State | str] | None = None, client: Client | None = None
    ) -> Generator[Self, None]:
        """Sandboxes that have all these tags and are in one of these states (default: those not ended), newest first."""
        client = client or _default()
        states = [str(state)] if isinstance(state, str) else [str(one) for one in state or ()]
        query: dict[str, str | list[str] | None] = {"tag": [f"{key}={value}" for key, value in (tags or {}).items()], "state": states}
        while True:
            page = faults.decode(SandboxPage, client.transport.call("GET", "/v1/sandboxes", query=query))
            for info in page.sandboxes:
                yield cls(client, info)
            if page.next is None:
                return
            query["cursor"] = page.next

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    def __repr__(self) -> str:
        return f"<Sandbox {self.id}{f' {self.name!r}' if self.name else ''} {self.state}>"

    @property
    def id(self) -> str:
        return self.info.id

    @property
    def name(self) -> str | None:
        return self.info.name

    @property
    def state(self) -> State:
        """As of the last answer."""
        return self.info.state

    @property
    def reason(self) -> Reason | None:
        """Why it left the running state."""
        return self.info.reason

    @property
    def tags(self) -> dict[str, str]:
        return self.info.tags

    @property
    def timing(self) -> dict[str, float]:
        """Seconds of each phase of its start."""
        return self.info.timing or {}

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        input: str | bytes | None = None,
        on_stdout: Callback | None = None,
        on_stderr: Callback | None = None,
    ) -> Result:
        """Run a command to its end: a text by the sandbox's shell, a sequence as it is. Never raises for an exit code; see `Result.check`.

        After `timeout` seconds the command and all it started are killed and `DeadlineExceeded` (a `TimeoutError`) is raised, with the output
        so far in `.partial`. Cancelling the call, or Ctrl-C, kills it too. The callbacks get text as it arrives. `SandboxEnded` when the
        sandbox ends under it.
        """
        raw = input.encode() if isinstance(input, str) else input
        start = start_request(command, timeout=timeout, cwd=cwd, env=dict(env or {}), user=user, stdin=input is not None)
        return Run(self._transport, self.id, start, on_stdout=on_stdout, on_stderr=on_stderr).finish(raw)

    @overload
    def exec(
        self,
        *argv: str,
        text: Literal[True] = True,
        pty: bool | tuple[int, int] = False,
        stdin: bool = True,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        tag: str | None = None,
    ) -> Process[str]: ...
    @overload
    def exec(
        self,
        *argv: str,
        text: Literal[False],
        pty: bool | tuple[int, int] = False,
        stdin: bool = True,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        tag: str | None = None,
    ) -> Process[bytes]: ...
    def exec(
        self,
        *argv: str,
        text: bool = True,
        pty: bool | tuple[int, int] = False,
        stdin: bool = True,
        timeout: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        tag: str | None = None,
    ) -> Process[str] | Process[bytes]:
        """Start a process and return at once, with a handle shaped like `subprocess.Popen`.

        `pty` gives it a terminal (True: 24 rows, 80 columns, or a pair). Without `stdin` its input is empty. It outlives this handle
        and this program, until it ends, is killed, or the sandbox ends; `process(id)` finds it again.
        """
        size = (24, 80) if pty is True else pty or None
        start = start_request(argv, timeout=timeout, cwd=cwd, env=dict(env or {}), user=user, stdin=stdin, pty=size, tag=tag)
        body = self._transport.call("POST", self._path + "/processes", body=faults.encode(start), key=faults.new_key())
        return self._handle(faults.decode(ProcessInfo, body), text=text)

    @overload
    def process(self, id: str, *, text: Literal[True] = True) -> Process[str]: ...
    @overload
    def process(self, id: str, *, text: Literal[False]) -> Process[bytes]: ...
    def process(self, id: str, *, text: bool = True) -> Process[str] | Process[bytes]:
        """A process that was started earlier, by whomever; its output is given from the oldest byte still kept."""
        body = self._transport.call("GET", f"{self._path}/processes/{faults.segment(id)}")
        return self._handle(faults.decode(ProcessInfo, body), text=text)

    def processes(self) -> list[ProcessInfo]:
        """The processes started through the API, running and ended."""
        return faults.decode(Processes, self._transport.call("GET", self._path + "/processes")).processes

    def _handle(self, info: ProcessInfo, *, text: bool) -> Process[str] | Process[bytes]:
        handle = Process(self._transport, info, str) if text else Process(self._transport, info, bytes)
        self._processes.add(handle)
        return handle

    def refresh(self) -> Self:
        """Ask the server how it is."""
        self.info = faults.decode(SandboxInfo, self._transport.call("GET", self._path))
        return self

    def stop(self) -> None:
        """End its processes and its memory; the disk is kept for `start`."""
        self._change("/stop")

    def start(self) -> None:
        """Start it again with the same disk."""
        self._change("/start")

    def pause(self) -> None:
        """Keep its processes, memory and disk on the disk; it takes no memory and no processor until it is resumed, or used: a command or a file access resumes it.

        Raises `Unsupported` when something in it can't be saved, and says what; it goes on then.
        """
        self._change("/pause")

    def resume(self) -> None:
        """Have it go on where it was paused."""
        self._change("/resume")

    @overload
    def fork(self, children: int | Sequence[ForkChild | Mapping[str, Any]] = 1, *, partial: Literal[False] = False) -> Sequence[Self]: ...
    @overload
    def fork(self, children: int | Sequence[ForkChild | Mapping[str, Any]] = 1, *, partial: Literal[True]) -> Sequence[Self | CorralError]: ...
    def fork(self, children: int | Sequence[ForkChild | Mapping[str, Any]] = 1, *, partial: bool = False) -> Sequence[Self | CorralError]:
        """New sandboxes with its disk, its memory and all its processes, as they are now, while it goes on. Say how many, or what each has of its own: name, env, secrets, tags, egress, volumes.

        `volumes` names, by paths at which this one has a volume, what the fork has there instead, as a copy that was made of it; the others are shared.

        If one can't be made all that were are deleted, and its error is raised; with `partial` the error takes its place in the list. Raises `Unsupported` when something in it can't be saved.
        """
        wanted = {"count": children} if isinstance(children, int) else {"children": [_own(child) for child in children]}
        request = faults.encode(faults.build(SandboxFork, **wanted))
        answer = self._transport.call("POST", self._path + "/fork", body=request, key=faults.new_key(), seconds=ROOM_SECONDS)
        made: dict[int, Self] = {}
        failed: dict[int, CorralError] = {}
        forks = faults.decode(Forks, answer).forks
        for number, fork in enumerate(forks):
            if fork.sandbox is not None:
                made[number] = type(self)(self.client, fork.sandbox)
            else:
                failed[number] = faults.told(fork.error)
        if failed and not partial:
            for box in made.values():
                box.delete()
            raise next(iter(failed.values()))
        return [made[number] if number in made else failed[number] for number in range(len(forks))]

    def extend(self, seconds: float) -> None:
        """Move its deadline to at least `seconds` from now."""
        self._change("/extend", faults.encode(faults.build(SandboxExtend, seconds=seconds)))

    def update(
        self,
        *,
        name: str | Keep | None = KEEP,
        tags: Mapping[str, str] | Keep = KEEP,
        timeout: float | Keep | None = KEEP,
        idle_timeout: float | Keep | None = KEEP,
        on_timeout: Literal["terminate", "stop", "pause"] | Keep = KEEP,
        on_request: Literal["resume", "start"] | Keep = KEEP,
    ) -> None:
        """Change what is given; `tags` replaces all tags, `timeout` counts from now, None takes a name or a time away."""
        given = {"name": name, "tags": tags, "timeout": timeout, "idle_timeout": idle_timeout, "on_timeout": on_timeout, "on_request": on_request}
        request = faults.build(SandboxUpdate, **{field: value for field, value in given.items() if value is not KEEP})
        self.info = faults.decode(SandboxInfo, self._transport.call("PATCH", self._path, body=faults.encode(request), safe=True))

    def attach(self, path: str, volume: Volume | str) -> None:
        """Have a volume appear at `path`: at once, or, if it is stopped, when it starts. Raises `Conflict` when there is one already."""
        request = faults.encode(faults.build(VolumeAttach, path=path, **mount(volume).model_dump()))
        self.info = faults.decode(SandboxInfo, self._transport.call("POST", self._path + "/volumes", body=request))

    def detach(self, path: str) -> None:
        """Take the volume at `path` away. What programs have open there they may use on."""
        self.info = faults.decode(SandboxInfo, self._transport.call("DELETE", self._path + "/volumes", query={"path": path}))

    def snapshot(self, name: str | None = None, *, memory: bool = False) -> Snapshot:
        """Keep its disk as it is now, as an image; it goes on running. With `memory` its processes are kept too: in a sandbox made from it they go on from this moment.

        Raises `Conflict` when the project has a snapshot or the node an image of that name, `Unsupported` when its memory can't be kept.
        """
        request = faults.encode(faults.build(SnapshotCreate, memory=memory, **({} if name is None else {"name": name})))
        return self._keep("/snapshots", request)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write its disk as it is now, on its image, to a file: an OCI archive that `docker load`, skopeo, podman and `Image.from_archive` take.

        It may be running, stopped or paused.
        """
        kept = self.snapshot()
        try:
            self.client.images.export(kept.id, path)
        finally:
            kept.delete()

    def checkpoint(self, name: str) -> Snapshot:
        """Keep its disk as it is now in its own history, for `diff` and `rewind`; it goes on running."""
        return self._keep("/checkpoints", faults.encode(faults.build(CheckpointCreate, name=name)))

    def checkpoints(self) -> list[Snapshot]:
        """Its checkpoints, the oldest first."""
        found = faults.decode(Checkpoints, self._transport.call("GET", self._path + "/checkpoints"))
        return [Snapshot(self.client, info) for info in found.checkpoints]

    def diff(self, before: str | Snapshot | None = None, after: str | Snapshot | None = None, *, text: bool = False, limit: int = 10_000) -> Diff:
        """What changed on its disk between two checkpoints or snapshots: added, changed and removed paths, with sizes and modes.

        Without `before`: since its image. Without `after`: until now. `text` adds a unified diff to what is text, of files up to 256 KiB.
        """
        query: dict[str, str | list[str] | None] = {"before": _ref(before), "after": _ref(after), "limit": str(limit)}
        if text:
            query["text"] = "true"
        return faults.decode(Diff, self._transport.call("GET", self._path + "/diff", query=query, seconds=ROOM_SECONDS))

    def rewind(self, checkpoint: str | Snapshot) -> None:
        """Put its disk back to a checkpoint (its name or id). The present state is kept first, as the checkpoint `before-rewind-N`.

        Everything that runs in it ends; it is started again unless it was stopped.
        """
        body = faults.encode(faults.build(Rewind, checkpoint=_ref(checkpoint)))
        self.info = faults.decode(SandboxInfo, self._transport.call("POST", self._path + "/rewind", body=body, seconds=ROOM_SECONDS))

    def merge(
        self, snapshot: str | Snapshot, *, base: str | Snapshot | None = None, on_conflict: Literal["refuse", "keep", "take"] = "refuse", dry_run: bool = False
    ) -> Merge:
        """Take over what the snapshot of a fork has changed since it went its own way (`base`; found by itself for forks of this sandbox's snapshots).

        What both have changed is a conflict. Unless `on_conflict` says to keep ours or to take theirs, `Conflict` is raised, its details tell what, and nothing is done.
        The disk as it was is the checkpoint that the answer names. `dry_run` only tells.
        """
        wanted = {"base": None if base is None else _ref(base), "on_conflict": on_conflict, "dry_run": dry_run}
        body = faults.encode(faults.build(MergeRequest, snapshot=_ref(snapshot), **wanted))
        return faults.decode(Merge, self._transport.call("POST", self._path + "/merge", body=body, seconds=ROOM_SECONDS))

    def _keep(self, what: str, request: bytes) -> Snapshot:
        body = self._transport.call("POST", self._path + what, body=request, key=faults.new_key(), seconds=ROOM_SECONDS)
        return Snapshot(self.client, faults.decode(SnapshotInfo, body))

    def delete(self) -> None:
        """End it and remove its disk. Nothing happens when it has ended already."""
        for process in tuple(self._processes):
            process.close()
        self._processes.clear()
        self.info = faults.decode(SandboxInfo, self._transport.call("DELETE", self._path))

    terminate = delete

    def preview(self, port: int) -> Preview:
        """A port as it is seen from outside: `.url`, and `.signed()` for a link that needs no key. Nothing need listen on it yet."""
        return Preview(self._transport, self._path, faults.decode(PreviewInfo, self._transport.call("GET", f"{self._path}/previews/{port}")))

    def tunnel(self, port: int, *, local_port: int = 0, host: str = "127.0.0.1") -> Tunnel:
        """A context manager: while it is open, connections to its local `.address` end at this port inside. `local_port` 0: any free one."""
        return Tunnel(self._transport, self._path, port, host=host, local_port=local_port)

    def expose(self, host_port: int, *, as_: str, host: str = "127.0.0.1") -> Exposed:
        """A context manager: while it is open, programs inside reach a server out here (`host`, `host_port`) as `as_`, "NAME" or "NAME:PORT", whatever the sandbox's egress policy is.

        It ends with the context, and when the sandbox is paused or stopped.
        """
        name, _, port = as_.partition(":")
        if port and not port.isdecimal():
            raise ValueError(f"{as_!r} is not NAME or NAME:PORT")
        return Exposed(self._transport, self._path, name, int(port or host_port), target=(host, host_port))

    def ports(self) -> list[Port]:
        """TCP ports that something inside listens on."""
        return faults.decode(Ports, self._transport.call("GET", self._path + "/ports")).ports

    def preview_token(self, *, rotate: bool = False) -> str:
        """What opens every port, as the header `Corral-Token`. `rotate`: another one; links and cookies made with the old one end."""
        method, path = ("POST", "/preview-token/rotate") if rotate else ("GET", "/preview-token")
        return faults.decode(PreviewToken, self._transport.call(method, self._path + path)).token

    def ssh(self) -> SshAccess:
        """How to log in by SSH: `ssh -p PORT USER@HOST` with the token as the password, good for one login. `corral ssh` does that."""
        return faults.decode(SshAccess, self._transport.call("POST", self._path + "/ssh"))

    def hold(self, seconds: float, reason: str = "") -> None:
        """Keep it awake for so long from now, as if it were used; 0 ends an earlier hold."""
        self._transport.call("POST", self._path + "/hold", body=faults.encode(faults.build(Hold, seconds=seconds, reason=reason)), safe=True)

    def metrics(self) -> list[Sample]:
        """Its use of cpu, memory, disk and processes: a short history, the last one taken now."""
        return faults.decode(Metrics, self._transport.call("GET", self._path + "/metrics")).samples

    def logs(self) -> list[LogLine]:
        """What the engine and the guest agent said about it."""
        return faults.decode(Logs, self._transport.call("GET", self._path + "/logs")).lines

    def events(self, *, kind: str | None = None, after: int = 0, follow: bool = False) -> Iterator[Event]:
        """What happened to it, oldest first; with `follow` also what happens from now on, without end."""
        return event.events(self._transport, sandbox=self.id, kind=kind, after=after, follow=follow)

    def _change(self, action: str, body: bytes = b"") -> None:
        self.info = faults.decode(SandboxInfo, self._transport.call("POST", self._path + action, body=body, safe=True))


def _own(child: ForkChild | Mapping[str, Any]) -> dict[str, Any]:
    """As a request says it: policies, secrets and volumes are given as for a create."""
    own = dict(child)
    if isinstance(egress := own.get("egress"), Egress):
        own["egress"] = policy(egress)
    secrets: Sequence[Any] = own.get("secrets") or ()
    if secrets:
        own["secrets"] = [use for one in secrets for use in (uses([one]) if isinstance(one, NamedSecret) else [one])]
    volumes: Mapping[str, Any] = own.get("volumes") or {}
    if volumes:
        own["volumes"] = {path: mount(one) if isinstance(one, (str, Volume)) else one for path, one in volumes.items()}
    return own


def _ref(named: str | Snapshot | None) -> str | None:
    return named.id if isinstance(named, Snapshot) else named


class Creation:
    """A request for a sandbox that can be taken back."""

    def __init__(self, client: Client, body: bytes, seconds: float) -> None:
        self._transport = client.transport
        self._body = body
        self._seconds = seconds
        self._key = faults.new_key()

    def send(self) -> SandboxInfo:
        return faults.decode(SandboxInfo, self._transport.call("POST", "/v1/sandboxes", body=self._body, key=self._key, seconds=self._seconds))

    def undo(self) -> None:
        """Ask again with the same key, which tells what was made, and end it."""
        for seconds in delays():
            try:
                made = self.send()
                self._transport.call("DELETE", "/v1/sandboxes/" + made.id)
                return
            except Conflict:  # it is still being made
                time.sleep(seconds)
            except CorralError:  # it was not made; the caller gets the interruption, not this
                return


def _default() -> Client:
    from corral.sdk._sync.client import default_client

    return default_client()
