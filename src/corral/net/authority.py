"""The installation's own certificate authority: made once, trusted only inside sandboxes whose policy has TLS ended; and certificates of the hosts it stands in for."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATE, KEY = "egress-ca.pem", "egress-ca.key"
LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=30)
BACKDATED = timedelta(days=1)
"""Clocks in sandboxes may be a little slow."""
CONTEXTS = 1024
RENEW = timedelta(days=7)


class Authority:
    """Of one directory. Nothing is read or made before it is needed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._contexts: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()

    def ensure(self) -> Path:
        """The certificate's file, made (with its key, both readable by their owner only) when it is not there."""
        certificate, key = self._directory / CERTIFICATE, self._directory / KEY
        if certificate.exists() and key.exists():
            return certificate
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corral egress authority of this installation")])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(secret.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
            .sign(secret, hashes.SHA256())
        )
        # The key first: a certificate without its key is made anew.
        _write(key, _private(secret))
        _write(certificate, made.public_bytes(serialization.Encoding.PEM))
        return certificate

    def pem(self) -> bytes:
        """The certificate, for the bundle of trusted ones inside a sandbox."""
        return self.ensure().read_bytes()

    @cached_property
    def _own(self) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        certificate = x509.load_pem_x509_certificate(self.ensure().read_bytes())
        key = serialization.load_pem_private_key((self._directory / KEY).read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{self._directory / KEY} is no key of the kind that Corral makes")
        return certificate, key

    @cached_property
    def _leaf_key(self) -> ec.EllipticCurvePrivateKey:
        """One for all hosts, of this process only."""
        return ec.generate_private_key(ec.SECP256R1())

    def context(self, host: str) -> ssl.SSLContext:
        """A server's context that stands in for a host (name or address); offers HTTP/1.1 only."""
        now = datetime.now(UTC)
        known = self._contexts.get(host)
        if known is not None and known[0] > now:
            self._contexts.move_to_end(host)
            return known[1]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        # OpenSSL reads chains from files only; this one has no name and never touches a disk.
        with os.fdopen(os.memfd_create("leaf", os.MFD_CLOEXEC), "wb") as chain:
            chain.write(self.chain(host))
            chain.flush()
            context.load_cert_chain(f"/proc/self/fd/{chain.fileno()}")
        self._contexts[host] = now + LEAF_LIFE - RENEW, context
        if len(self._contexts) > CONTEXTS:
            self._contexts.popitem(last=False)
        return context

    def chain(self, host: str) -> bytes:
        """A certificate for a host with its key, as PEM."""
        return self.leaf(host) + _private(self._leaf_key)

    def leaf(self, host: str) -> bytes:
        """A certificate for a host, as PEM."""
        issuer, key = self._own
        alternative: x509.GeneralName
        try:
            alternative = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            alternative = x509.DNSName(host)
        now = datetime.now(UTC)
        # A common name has 64 characters at most; who checks names looks at the alternative one.
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host[:64])])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject)
            .public_key(self._leaf_key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LEAF_LIFE)
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    """As a whole, or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
