"""Certificate authorities that this host trusts beyond the distribution's own: a company's proxy, say. Sandboxes must trust them too."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

_LOCAL = Path("/usr/local/share/ca-certificates")
_SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def host_extra() -> dict[str, bytes]:
    """PEM certificates by digest: those an administrator added, and those of the bundle in `SSL_CERT_FILE` where that is not the system's."""
    sources = sorted(_LOCAL.rglob("*.crt")) if _LOCAL.is_dir() else []
    named = os.environ.get("SSL_CERT_FILE")
    if named and Path(named).is_file() and Path(named).resolve() != _SYSTEM_BUNDLE.resolve():
        sources.append(Path(named))
    found: dict[str, bytes] = {}
    for source in sources:
        for certificate in _PEM.findall(source.read_bytes()):
            found[digest(certificate)] = certificate
    return found


def bundled(bundle: Path) -> set[str]:
    """The digests of the certificates in a bundle."""
    return {digest(certificate) for certificate in _PEM.findall(bundle.read_bytes())}


def digest(certificate: bytes) -> str:
    """Alike for one certificate however its lines end."""
    return hashlib.sha256(b"".join(certificate.split())).hexdigest()[:16]
