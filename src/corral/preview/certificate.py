"""The edge's own certificate authority, for `corral up --tls`, and its certificate for the wildcard name. It can speak for the one domain only, so that trusting it trusts it with nothing else."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA, CA_KEY, CHAIN = "edge-ca.pem", "edge-ca.key", "edge.pem"
CA_LIFE = timedelta(days=3650)
LIFE = timedelta(days=390)
"""Browsers take no certificate that is valid for more than 398 days."""
RENEW = timedelta(days=90)
BACKDATED = timedelta(days=1)


def ensure(directory: Path, domain: str) -> Path:
    """The file with the wildcard's certificate and key, made when it is missing, old, or another domain's."""
    chain = directory / CHAIN
    if _serves(chain, domain):
        return chain
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority, secret = _authority(directory, domain)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(domain), x509.DNSName(f"*.{domain}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, domain[:64])]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFE)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(secret.public_key()), critical=False)
        .sign(secret, hashes.SHA256())
    )
    _write(chain, made.public_bytes(serialization.Encoding.PEM) + authority.public_bytes(serialization.Encoding.PEM) + _private(key))
    return chain


def _authority(directory: Path, domain: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        found = x509.load_pem_x509_certificate((directory / CA).read_bytes())
        secret = serialization.load_pem_private_key((directory / CA_KEY).read_bytes(), None)
        allowed = found.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or []
        if (
            isinstance(secret, ec.EllipticCurvePrivateKey)
            and [name.value for name in allowed] == [domain]
            and found.not_valid_after_utc > datetime.now(UTC) + LIFE
        ):
            return found, secret
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        pass
    return _make_authority(directory, domain)


def _make_authority(directory: Path, domain: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Corral previews, {domain}"[:64])])
    now = datetime.now(UTC)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.NameConstraints(permitted_subtrees=[x509.DNSName(domain)], excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(secret.public_key()), critical=False)
        .sign(secret, hashes.SHA256())
    )
    # The key first: a certificate without its key is made anew.
    _write(directory / CA_KEY, _private(secret))
    _write(directory / CA, made.public_bytes(serialization.Encoding.PEM))
    return made, secret


def _serves(chain: Path, domain: str) -> bool:
    try:
        leaf = x509.load_pem_x509_certificate(chain.read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    except (FileNotFoundError, ValueError, x509.ExtensionNotFound):
        return False
    return f"*.{domain}" in names and leaf.not_valid_after_utc > datetime.now(UTC) + RENEW


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    fresh.rename(path)
