"""What a server can be told: by flag, environment, file, in this order; else the default. It remembers which it was."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from corral.errors import SetupError
from corral.places import Places, default_home

CONFIG = Path("/etc/corral/config.toml")


class Settings(BaseModel):
    """Of one server. In the file they have these names; in the environment CORRAL_ and the name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(default_factory=default_home, description="where everything that lasts is kept")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(7070, ge=0, le=65_535, description="0: any free one")
    edge_port: int = Field(7080, ge=0, le=65_535, description="where previews are served; 0: any free one, as when the usual one is taken")
    tls: bool = Field(default=False, description="serve previews with TLS as well, by a certificate authority of this installation's own")
    tls_port: int = Field(7443, ge=0, le=65_535, description="where; 0: any free one")
    domain: str = Field(
        "corral.localhost",
        pattern=r"^[a-z0-9]([a-z0-9.-]{0,180}[a-z0-9])?$",
        description="previews are at {port}-{sandbox}.{domain}",
    )
    edge_url: str | None = Field(
        None, pattern=r"^https?://[^/?#@\s*]+$", description="how the domain is reached from outside, SCHEME://DOMAIN[:PORT], when a proxy with TLS is in front"
    )
    ssh: bool = Field(default=True, description="let SSH into sandboxes")
    ssh_port: int = Field(2222, ge=0, le=65_535, description="where; 0: any free one, as when the usual one is taken")
    listen_anywhere: bool = Field(default=False, description="allow an address that other machines can reach, without TLS")
    database: str | None = Field(None, description="URL of the database; default: SQLite in the home")
    encrypt: bool = Field(default=False, description="encrypt what sandboxes write, in a home that is new; one that is encrypted stays so without being told")
    disk_key_file: Path | None = Field(None, description="the key to an encrypted home; default: keys/disk.key in the home, made with it")
    disk_key_command: str | None = Field(
        None, min_length=1, description="a command line that prints that key, in hexadecimal digits or base64, in place of the file"
    )
    terminate: bool = Field(default=False, description="end all sandboxes when the server ends")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = Field("auto", description="auto: console on a terminal, else json")
    runsc: Path | None = Field(None, description="the runsc to use; default: the first that passes its test")
    pool: Annotated[int, Field(ge=0, le=4096)] | None = Field(None, description="sandboxes kept ready; default: by the machine's memory")
    platform: Literal["systrap", "kvm", "ptrace"] = "systrap"
    freeze: Literal["auto", "always", "never"] = Field("auto", description="whether idle sandboxes are frozen")
    resolvers: str | None = Field(
        None,
        pattern=r"^[0-9.]+(:[0-9]+)?(,[0-9.]+(:[0-9]+)?)*$",
        description="DNS servers for sandboxes, ADDRESS[:PORT] with commas between; default: the machine's",
    )
    registry_mirrors: str | None = Field(
        None,
        pattern=r"^[^=,\s]+=https?://[^=,\s]+(,[^=,\s]+=https?://[^=,\s]+)*$",
        description="where images of a registry are asked for first, REGISTRY=URL with commas between, such as docker.io=https://mirror.example",
    )
    code_templates: int = Field(
        2, ge=0, le=64, description="shapes (cpu, memory) of sandboxes of code-interpreter that are kept with their kernel running, to begin with; 0: none"
    )
    warm_templates: int = Field(
        4, ge=0, le=64, description="memories of what templates start that are kept for new sandboxes to begin with, the newest of all projects; 0: none"
    )
    starts: int = Field(8, ge=1, le=1024, description="sandboxes that may start at the same time")

    _origin: dict[str, str] = PrivateAttr(default_factory=dict[str, str])

    @property
    def origin(self) -> Mapping[str, str]:
        """Where each setting comes from: `flag`, a variable's name, a file, or `default`."""
        return {name: self._origin.get(name, "default") for name in type(self).model_fields}

    @property
    def places(self) -> Places:
        return Places(self.home.absolute())

    @property
    def mirrors(self) -> dict[str, list[str]]:
        """Addresses by registry, in their order."""
        found: dict[str, list[str]] = {}
        for one in self.registry_mirrors.split(",") if self.registry_mirrors else ():
            registry, _, address = one.partition("=")
            found.setdefault(registry, []).append(address)
        return found

    @property
    def disk_key_option(self) -> str | None:
        """The one that says where the key to the disks is, as its user knows it; None: neither was given."""
        given = next((name for name in ("disk_key_file", "disk_key_command") if getattr(self, name) is not None), None)
        return f"{given} (from {self.origin[given]})" if given else None

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.places.database}"

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str], file: Path | None = None) -> Self:
        """Flags that are None were not given. `file` must exist when it is given; the usual one need not. Raises `SetupError`."""
        values: dict[str, Any] = {}
        origin: dict[str, str] = {}
        path = file or (CONFIG if CONFIG.exists() else None)
        sources: list[tuple[str | None, Mapping[str, Any]]] = [
            (None if path is None else str(path), {} if path is None else _read(path)),
            ("environment", {name: environ[_variable(name)] for name in cls.model_fields if environ.get(_variable(name))}),
            ("flag", {name: value for name, value in (flags or {}).items() if value is not None}),
        ]
        for source, given in sources:
            for name, value in given.items():
                values[name] = value
                origin[name] = _variable(name) if source == "environment" else str(source)
        try:
            settings = cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]) if first["loc"] else ""
            raise SetupError(f"{name}: {first['msg']} (from {origin.get(name, 'default')})", hint="`corral up --help` lists the settings") from None
        settings._origin.update(origin)
        settings._check_address()
        if settings.disk_key_file is not None and settings.disk_key_command is not None:
            raise SetupError("disk_key_file and disk_key_command are both given", hint="give the one that has the key")
        return settings

    def _check_address(self) -> None:
        if self.listen_anywhere or self.host == "localhost":
            return
        try:
            loopback = ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            loopback = False
        if not loopback:
            raise SetupError(
                f"host: {self.host} can be reached from other machines, and keys would travel without TLS",
                hint="put a proxy with TLS before 127.0.0.1, or say --listen-anywhere",
            )


def _variable(name: str) -> str:
    return f"CORRAL_{name.upper()}"


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SetupError(f"{path} can't be read: {error}", hint="mend it, or name another one with --config") from None
