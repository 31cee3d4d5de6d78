"""Makes a sandbox trust the installation's egress authority, where its policy has TLS ended: in the bundle of its distribution, and by what programs with roots of their own read."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from corral.errors import FileNotFound
from corral.node.files import Files
from corral.schema.egress import EgressPolicy

BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
"""Of Debian, Ubuntu, Alpine, Arch and SUSE; made where there is none."""
_OTHERS = ("/etc/pki/tls/certs/ca-bundle.crt",)
"""Of Red Hat and its kin."""
_ADDED = "/usr/local/share/ca-certificates/corral-egress.crt"
"""From where update-ca-certificates(8) takes it, when it makes the bundle anew."""
_LARGEST = 8 << 20
_VARIABLES = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
    "PIP_CERT",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
)
"""What OpenSSL, Python, curl, Node.js, git, the AWS tools, pip, cargo, Deno and gRPC read. Java has a store of its own, and is not told."""


def environment(policy: EgressPolicy, own: Mapping[str, str]) -> dict[str, str]:
    """What processes get. `own`: what the sandbox's creator has set, which stays."""
    return {name: BUNDLE for name in _VARIABLES if name not in own} if policy.inspects else {}


async def install(files: Files, certificate: bytes) -> None:
    """Add the certificate to every bundle that does not have it."""
    for path in (BUNDLE, *_OTHERS):
        try:
            known = await _read(files, path)
        except FileNotFound:
            if path != BUNDLE:
                continue
            known = _roots()
        if certificate not in known:
            await _write(files, path, known.rstrip() + b"\n" + certificate)
    await _write(files, _ADDED, certificate)


def _roots() -> bytes:
    """This machine's, for an image that has none."""
    place = ssl.get_default_verify_paths().cafile or BUNDLE
    return Path(place).read_bytes() if Path(place).is_file() else b""


async def _read(files: Files, path: str) -> bytes:
    _, download = await files.read(path, length=_LARGEST)
    try:
        return b"".join([chunk async for chunk in download])
    finally:
        await download.aclose()


async def _write(files: Files, path: str, data: bytes) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield data

    await files.write(path, chunks(), mode=0o644, user="0", parents=True)
