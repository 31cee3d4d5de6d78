"""What is taken over from the host into images: certificates and mirrors."""

from __future__ import annotations

from pathlib import Path

import pytest

from corral.images import certificates
from corral.images.host_mirrors import HostMirrors
from corral.images.release import Release, Source

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\nAAAA\n-----END CERTIFICATE-----"
OTHER = b"-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----"
OFFICIAL = (Source("http://archive.example/debian", "bookworm", ("main",)),)
RELEASE = Release("debian", "bookworm", "/usr/share/keyrings/debian-archive-keyring.gpg", OFFICIAL)


def test_a_certificate_is_the_same_whatever_its_line_ends() -> None:
    assert certificates.digest(CERTIFICATE) == certificates.digest(CERTIFICATE.replace(b"\n", b"\r\n") + b"\n")
    assert certificates.digest(CERTIFICATE) != certificates.digest(OTHER)


def test_certificates_of_a_bundle_named_by_the_environment_are_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"# a comment\n" + CERTIFICATE + b"\n\n" + OTHER + b"\n" + CERTIFICATE)
    assert certificates.bundled(bundle) == {certificates.digest(CERTIFICATE), certificates.digest(OTHER)}
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    extra = certificates.host_extra()
    assert extra[certificates.digest(OTHER)] == OTHER
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing"))
    assert certificates.digest(OTHER) not in certificates.host_extra()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory of whoever sets Corral up."""
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "NPM_CONFIG_REGISTRY", "npm_config_registry"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".config/pip").mkdir(parents=True)
    return tmp_path


def test_mirrors_are_read_from_files_and_environment_and_written_into_an_image(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / ".config/pip/pip.conf").write_text("[global]\nindex-url = https://pypi.example/simple\ntimeout = 60\n[install]\nindex-url = no\n")
    (host / ".npmrc").write_text("//npm.example/:_authToken=secret\nregistry = https://npm.example/\n")
    monkeypatch.setenv("PIP_TRUSTED_HOST", "pypi.example")
    mirrors = HostMirrors.of_host(RELEASE)
    assert dict(mirrors.pip) == {"index-url": "https://pypi.example/simple", "trusted-host": "pypi.example"}
    root = host / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/pip.conf").write_text("[global]\nbreak-system-packages = true\n")
    assert mirrors.write(root) == {"NPM_CONFIG_REGISTRY": "https://npm.example/"}
    assert (root / "etc/pip.conf").read_text().endswith("index-url = https://pypi.example/simple\ntrusted-host = pypi.example\n")


def test_an_address_with_a_password_stays_on_the_host(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:secret@pypi.example/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://other.example https://me:secret@third.example")
    (host / ".npmrc").write_text("registry=https://me:secret@npm.example/\n")
    mirrors = HostMirrors.of_host(RELEASE)
    assert "secret" not in repr(mirrors)


def test_other_mirrors_make_another_key(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = HostMirrors.of_host(RELEASE).key()
    assert HostMirrors.of_host(RELEASE).key() == before
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "https://npm.example/")
    assert HostMirrors.of_host(RELEASE).key() != before
    assert host.exists()


def test_a_source_is_written_as_apt_reads_it() -> None:
    assert OFFICIAL[0].line(RELEASE.keyring) == "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://archive.example/debian bookworm main"
