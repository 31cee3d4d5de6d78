# Generated from sdk/_async/image.py by scripts/async_to_sync.py: edit that, not this.
"""Images: environments written as code, built in sandboxes, kept by content."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from corral.errors import BY_CODE, BuildFailed, Conflict, InternalError, NotFound
from corral.schema.egress import EgressPolicy
from corral.schema.image import Build, BuildCreate, BuildError, BuildLog, BuildState, ImageInfo, Ready
from corral.sdk import faults, recipe
from corral.sdk._sync import stream
from corral.sdk._sync.snapshot import Snapshot
from corral.sdk.context import LocalArchive, ignore_file, join
from corral.sdk.egress import Egress, policy
from corral.sdk.recipe import Recipe
from corral.sdk.secret import NamedSecret

if TYPE_CHECKING:
    from corral.sdk._sync.client import Client
    from corral.sdk._sync.sandbox import Sandbox

OnLog = Callable[[BuildLog], object]
UPLOAD_SECONDS = 600.0
_TRIES = 5


class Image:
    """A description of an image. Immutable: each method gives another one. Nothing happens before `build`, or `Sandbox.create(image)`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    # What it starts from

    @classmethod
    def named(cls, ref: str) -> Self:
        """An image, snapshot or template that is there, by name or id."""
        return cls(Recipe({"kind": "image", "ref": ref}))

    @classmethod
    def debian(cls, release: str | None = None, *, python: str | None = None) -> Self:
        """Debian's smallest system with Python and pip; `release` is a code name, else the node's own. `python` such as "3.11": refused if it has another."""
        return cls._distribution("debian", release, python)

    @classmethod
    def ubuntu(cls, release: str | None = None, *, python: str | None = None) -> Self:
        """As `debian`, on nodes that run Ubuntu."""
        return cls._distribution("ubuntu", release, python)

    @classmethod
    def _distribution(cls, name: str, release: str | None, python: str | None) -> Self:
        made = cls(Recipe({"kind": "distribution", "name": name, **({} if release is None else {"release": release})}))
        return made if python is None else made.run(recipe.python_is(python))

    @classmethod
    def alpine(cls, version: str = "latest") -> Self:
        """Alpine Linux, of the registry that is used by default."""
        return cls.from_registry(f"alpine:{version}")

    @classmethod
    def from_registry(cls, ref: str, *, username: str | None = None, auth: NamedSecret | str | None = None, platform: str | None = None) -> Self:
        """An image of an OCI registry: "python:3.12-slim", "ghcr.io/owner/name@sha256:…". `auth`: the secret that holds its password or token."""
        secret = auth.name if isinstance(auth, NamedSecret) else auth
        given = {"username": username, "secret": secret, "platform": platform}
        return cls(Recipe({"kind": "registry", "ref": ref, **{name: value for name, value in given.items() if value is not None}}))

    @classmethod
    def from_dockerfile(
        cls, path: str | Path = "Dockerfile", context: str | Path | None = None, *, args: Mapping[str, str] | None = None, target: str | None = None
    ) -> Self:
        """What a Dockerfile says. `context`: the directory it is built in, by default the one it is in; .dockerignore counts."""
        file = Path(path).expanduser().absolute()
        directory = file.parent if context is None else Path(context).expanduser().absolute()
        files = replace(recipe.local(directory), ignore=ignore_file(directory, file))
        given = {"args": dict(args) if args else None, "target": target}
        try:
            text = file.read_text()
        except FileNotFoundError:
            raise NotFound(f"there is no {file}", hint="name the Dockerfile") from None
        return cls(Recipe({"kind": "dockerfile", "text": text, "context": files, **{name: value for name, value in given.items() if value is not None}}))

    @classmethod
    def from_archive(cls, path: str | Path) -> Self:
        """What `docker save` wrote, or an OCI image layout as a tar file."""
        return cls(Recipe({"kind": "archive", "upload": LocalArchive(Path(path).expanduser().absolute())}))

    @classmethod
    def from_rootfs(cls, path: str | Path) -> Self:
        """A root file system as a tar file, plain or compressed."""
        return cls(Recipe({"kind": "archive", "upload": LocalArchive(Path(path).expanduser().absolute()), "rootfs": True}))

    @classmethod
    def scratch(cls) -> Self:
        """Nothing at all."""
        return cls(Recipe({"kind": "scratch"}))

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot | str) -> Self:
        """The disk of a sandbox as it was."""
        return cls.named(snapshot if isinstance(snapshot, str) else snapshot.id)

    # Steps that change files

    def run(
        self,
        *commands: str,
        env: Mapping[str, str] | None = None,
        secrets: Sequence[NamedSecret] = (),
        caches: Mapping[str, str] | None = None,
        timeout: float | None = None,
        force: bool = False,
    ) -> Self:
        """Run commands, each a step. `env` and `secrets` are for them only, and in no layer; `caches`: directories kept from build to build, names by path."""
        made = self.recipe
        words: dict[str, Any] = {
            "env": dict(env) if env else None,
            "secrets": [{"name": secret.name, "env": secret.env or secret.name} for secret in secrets] or None,
            "caches": dict(caches) if caches else None,
            "timeout": timeout,
            "force": True if force else None,
        }
        for command in commands:
            made = made.step("run", command=command, **words)
        return type(self)(made)

    def apt_install(self, *packages: str) -> Self:
        """Install packages of Debian or Ubuntu."""
        return self.run(recipe.apt(packages), env={"DEBIAN_FRONTEND": "noninteractive"})

    def pip_install(self, *packages: str, options: Sequence[str] = ()) -> Self:
        """Install Python packages with pip."""
        return self._tool(["python3", "-m", "pip", "install", *options, *packages], {"PIP_ROOT_USER_ACTION": "ignore"}, "pip", "PIP_CACHE_DIR")

    def pip_install_from_requirements(self, path: str | Path, *, options: Sequence[str] = ()) -> Self:
        """Install what a requirements file of this machine lists."""
        name = Path(path).name
        return self.copy(path, f"/tmp/{name}").pip_install("-r", f"/tmp/{name}", options=options)  # noqa: S108 - inside the build

    def uv_pip_install(self, *packages: str, options: Sequence[str] = ()) -> Self:
        """Install Python packages with uv, which the image must have, into the system's Python."""
        return self._tool(["uv", "pip", "install", "--system", "--break-system-packages", *options, *packages], {}, "uv", "UV_CACHE_DIR")

    def uv_sync(self, project: str | Path = ".", target: str = "/app", *, options: Sequence[str] = ()) -> Self:
        """Install what a project's pyproject.toml and uv.lock ask for, with uv, which the image must have."""
        directory = Path(project)
        made = self.copy(directory / "pyproject.toml", f"{target}/").copy(directory / "uv.lock", f"{target}/").workdir(target)
        return made._tool(["uv", "sync", "--frozen", "--no-install-project", *options], {}, "uv", "UV_CACHE_DIR")

    def npm_install(self, *packages: str, options: Sequence[str] = ("--global",)) -> Self:
        """Install packages with npm, which the image must have."""
        return self._tool(["npm", "install", *options, *packages], {}, "npm", "npm_config_cache")

    def _tool(self, words: Sequence[str], env: Mapping[str, str], cache: str, variable: str) -> Self:
        """A package manager, with what it downloads kept from build to build."""
        import shlex

        path = f"/var/cache/{cache}"
        return self.run(shlex.join(words), env={**env, variable: path}, caches={path: cache})

    def copy(self, local: str | Path, target: str, *, ignore: Sequence[str] | str | None = None, owner: str | None = None, mode: int | None = None) -> Self:
        """Copy a file of this machine, or what is in a directory, into the image. `ignore`: lines as in a .dockerignore; `owner`: user, user:group or numbers."""
        files = recipe.local(local, join(ignore))
        sources, where = recipe.place(files, target)
        return type(self)(self.recipe.step("copy", sources=sources, target=where, upload=files, owner=owner, mode=mode))

    def copy_from(self, image: Image, source: str, target: str, *, owner: str | None = None) -> Self:
        """Copy files of another image."""
        return type(self)(self.recipe.step("copy", sources=[source], target=target, image=image.recipe, owner=owner))

    def add_text(self, text: str, target: str, *, owner: str | None = None, mode: int | None = None) -> Self:
        """A file with this text."""
        name = target.rstrip("/").rpartition("/")[2]
        return type(self)(self.recipe.step("copy", files=[{"name": name, "text": text}], target=target, owner=owner, mode=mode))

    def add_local_dir(self, local: str | Path, target: str, *, copy: bool = False, ignore: Sequence[str] | str | None = None) -> Self:
        """Files of this machine. Unless `copy`, they are given to each new sandbox when it is created, so that an edit builds nothing anew."""
        if copy:
            return self.copy(local, target, ignore=ignore)
        return type(self)(self.recipe.attach(recipe.local(local, join(ignore)), target))

    # Settings

    def env(self, variables: Mapping[str, str] | None = None, **more: str) -> Self:
        """Variables of every process."""
        return type(self)(self.recipe.step("env", env={**(variables or {}), **more}))

    def workdir(self, path: str) -> Self:
        """Where processes start; made if it is missing."""
        return type(self)(self.recipe.step("workdir", path=path))

    def user(self, user: str) -> Self:
        """Who runs processes, from here on."""
        return type(self)(self.recipe.step("user", user=user))

    def entrypoint(self, *words: str) -> Self:
        return type(self)(self.recipe.step("command", entrypoint=list(words)))

    def cmd(self, *words: str) -> Self:
        return type(self)(self.recipe.step("command", command=list(words)))

    def expose(self, *ports: int | str) -> Self:
        """A note for people; nothing is opened."""
        return type(self)(self.recipe.step("expose", ports=[str(port) for port in ports]))

    def label(self, labels: Mapping[str, str] | None = None, **more: str) -> Self:
        return type(self)(self.recipe.step("label", labels={**(labels or {}), **more}))

    def start(self, command: str | Sequence[str], *, ready: Ready | Mapping[str, Any] | None = None, warm: bool = False) -> Self:
        """Run this in every new sandbox, before its create is answered; `ready` such as {"port": 8000} says when it is.

        `warm`: sandboxes begin with it running already, once the server has kept the memory of one of their shape; it must need no network to start.
        """
        return type(self)(self.recipe.step("start", **recipe.started(command, ready, warm=warm)))

    # Building

    def digest(self) -> str:
        """The same for the same words and files, on any machine. Reads the files."""
        return self.recipe.digest()

    def build(
        self,
        *,
        cpu: float | None = None,
        memory: int | None = None,
        disk: int | None = None,
        egress: Egress | EgressPolicy | Mapping[str, Any] | str | None = None,
        force: bool = False,
        template: str | None = None,
        tag: str | None = None,
        on_log: OnLog | None = None,
        client: Client | None = None,
    ) -> ImageInfo:
        """The image, built unless it is there. `cpu` in cores, `memory` and `disk` in MiB are what steps may use; `on_log` gets what is said.

        Raises `BuildFailed`, whose message shows the step with its output, and whatever is wrong with what it starts from.
        """
        client = client or _default()
        definition, uploads = self.recipe.write()
        given = {"cpu": cpu, "memory": memory, "disk": disk, "template": template, "tag": tag}
        request = faults.build(
            BuildCreate,
            definition=definition,
            **{name: value for name, value in given.items() if value is not None},
            **({} if egress is None else {"egress": policy(egress)}),
            **({"force": True} if force else {}),
        )
        for _ in range(_TRIES):
            build = self._ask(client, request, uploads)
            # One that has ended already may have said something, too.
            if build.state is BuildState.RUNNING or on_log is not None:
                try:
                    build = _follow(client, build.id, on_log)
                except NotFound:  # the server was started anew; what was done is kept
                    continue
            if build.error is not None:
                raise _failure(build.error)
            assert build.image is not None
            return faults.decode(ImageInfo, client.transport.call("GET", "/v1/images/" + build.image))
        raise InternalError("the server is started anew again and again while it builds", hint="look at its log")

    def give_files(self, sandbox: Sandbox) -> None:
        """Put what `add_local_dir` names into a new sandbox."""
        for attached in self.recipe.attached:
            path = "/v1/sandboxes/" + sandbox.id + "/tree"
            answer = sandbox.client.transport.stream("PUT", path, query={"path": attached.target}, body=_pieces(attached.files.pack()), seconds=UPLOAD_SECONDS)
            answer.read()

    def _ask(self, client: Client, request: BuildCreate, uploads: Mapping[str, recipe.Upload]) -> Build:
        body = request.model_dump_json(exclude_unset=True).encode()
        try:
            return faults.decode(Build, client.transport.call("POST", "/v1/images/builds", body=body, safe=True))
        except Conflict as error:
            missing = error.details.get("missing")
            if not missing:
                raise
        for digest in missing:
            answer = client.transport.stream("PUT", "/v1/images/uploads/" + digest, body=_pieces(uploads[digest].pack()), seconds=UPLOAD_SECONDS)
            answer.read()
        return faults.decode(Build, client.transport.call("POST", "/v1/images/builds", body=body, safe=True))


def _pieces(parts: Iterator[bytes]) -> Generator[bytes, None]:
    for part in parts:
        yield part


def _follow(client: Client, build: str, on_log: OnLog | None) -> Build:
    parts: Iterator[Any] = stream.follow(client.transport, f"/v1/images/builds/{build}/logs", {})
    with closing(parts) as events:
        for event in events:
            if event.name == "end":
                return faults.decode(Build, event.data)
            if event.name == "log" and on_log is not None:
                on_log(faults.decode(BuildLog, event.data))
    raise InternalError("the log of a build ended before the build did")


def _failure(error: BuildError) -> Exception:
    """With everything that a person needs to see."""
    details = {"step": error.step, "text": error.text, "before": error.before, "output": error.output, "exit_code": error.exit_code}
    kind = BY_CODE.get(error.code, BuildFailed)
    message = error.message
    if error.step is not None:
        above = f"\n  above it: {error.before}" if error.before else ""
        output = f"\n{error.output.rstrip()}" if error.output else ""
        message = f"step {error.step}: {error.text}: {error.message}{above}{output}"
    return kind(message, hint=error.hint, details={name: value for name, value in details.items() if value is not None})


def _default() -> Client:
    from corral.sdk._sync.client import default_client

    return default_client()
