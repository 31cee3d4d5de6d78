"""Which distribution the host runs and where it gets its packages: images are made of the same, since the host can reach that and trusts its keys."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from urllib.parse import urlsplit

from corral import spawn
from corral.errors import SetupError


@dataclass(frozen=True)
class Source:
    """One package source: `suite` such as `bookworm-security`."""

    uri: str
    suite: str
    components: tuple[str, ...]

    def line(self, keyring: str) -> str:
        return f"deb [signed-by={keyring}] {self.uri} {self.suite} {' '.join(self.components)}"


@dataclass(frozen=True)
class Release:
    """A release of Debian or Ubuntu, and the sources everybody can reach."""

    distribution: str
    codename: str
    keyring: str
    official: tuple[Source, ...]


def host_release() -> Release:
    """The host's release. Raises `SetupError` on anything but Debian and Ubuntu."""
    facts = platform.freedesktop_os_release()
    distribution, codename = facts.get("ID", "linux"), facts.get("VERSION_CODENAME")
    if distribution not in ("debian", "ubuntu") or not codename or not shutil.which("apt-get"):
        raise SetupError(
            f"images can be built on Debian and Ubuntu, not on {facts.get('PRETTY_NAME', distribution)}",
            hint="build them on a Debian 12 machine and copy its `images` and `layers` directories into this CORRAL_HOME",
        )
    domain = (urlsplit(facts.get("HOME_URL", "")).hostname or "").removeprefix("www.")
    return _release(distribution, codename, domain)


def release(distribution: str, codename: str | None) -> Release:
    """Another release of the host's own distribution. Raises `SetupError` for one whose keys the host has not."""
    host = host_release()
    if distribution != host.distribution:
        raise SetupError(
            f"images of {distribution} can't be made on {host.distribution}: its packages' keys are not here",
            hint=f"take one from a registry: Image.from_registry({distribution!r})",
        )
    if codename in (None, host.codename):
        return host
    return _release(distribution, codename, (urlsplit(host.official[0].uri).hostname or "").partition(".")[2])


def _release(distribution: str, codename: str, domain: str) -> Release:
    official = _debian(domain, codename) if distribution == "debian" else _ubuntu(domain, codename)
    return Release(distribution, codename, f"/usr/share/keyrings/{distribution}-archive-keyring.gpg", official)


def _debian(domain: str, codename: str) -> tuple[Source, ...]:
    """Debian's archive at the distribution's own domain, which os-release(5) tells."""
    mirror = f"http://deb.{domain}/debian"
    return (
        Source(mirror, codename, ("main",)),
        Source(mirror, f"{codename}-updates", ("main",)),
        Source(f"{mirror}-security", f"{codename}-security", ("main",)),
    )


def _ubuntu(domain: str, codename: str) -> tuple[Source, ...]:
    x86 = platform.machine() == "x86_64"
    mirror = f"http://archive.{domain}/ubuntu" if x86 else f"http://ports.{domain}/ubuntu-ports"
    security = f"http://security.{domain}/ubuntu" if x86 else mirror
    return (
        Source(mirror, codename, ("main", "universe")),
        Source(mirror, f"{codename}-updates", ("main", "universe")),
        Source(security, f"{codename}-security", ("main", "universe")),
    )


def host_sources(release: Release) -> tuple[Source, ...]:
    """For each official source the host's own place of that suite, where it has one (a mirror, a snapshot, a company's proxy). Asks apt: 0.1 s."""
    argv = ["apt-get", "indextargets", "--format", "$(SITE)|$(RELEASE)|$(COMPONENT)", "Created-By: Packages"]
    answer = spawn.run(argv, timeout=60)
    if answer.code:
        return release.official
    targets = {tuple(line.split("|")) for line in answer.stdout.decode(errors="replace").splitlines()}
    chosen: list[Source] = []
    for source in release.official:
        sites = sorted({site for site, suite, component in targets if suite == source.suite and component == "main" and _is_archive(site, source)})
        chosen.append(Source(sites[0], source.suite, source.components) if sites else source)
    return tuple(chosen)


def _is_archive(site: str, source: Source) -> bool:
    """Whether a site holds the distribution itself: other vendors' sites may use its suites' names, but not its last path words."""
    return site.rstrip("/").rpartition("/")[2] == source.uri.rpartition("/")[2] or site == source.uri
