"""What strangers write in references, challenges and documents."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import CorralError, Forbidden, InvalidArgument, Unsupported
from corral.images.oci.challenge import Challenge, token_of
from corral.images.oci.documents import Config, Index, Manifest, Platform, chain, digest_of, parse
from corral.images.oci.reference import Reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("python", "docker.io/library/python:latest"),
        ("python:3.12-slim", "docker.io/library/python:3.12-slim"),
        ("owner/name", "docker.io/owner/name:latest"),
        ("index.docker.io/owner/name", "docker.io/owner/name:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a/b:c", "localhost:5000/a/b:c"),
        ("[::1]:5000/a", "[::1]:5000/a:latest"),
        (f"ghcr.io/o/n:1@{DIGEST}", f"ghcr.io/o/n@{DIGEST}"),
    ],
)
def test_a_name_means_what_it_means_to_docker(text: str, meant: str) -> None:
    assert str(Reference.parse(text)) == meant


@pytest.mark.parametrize(
    "text", ["", "Upper", "a//b", "a:b:c", "../a", "a/../b", "http://a/b", "a@sha256:12", "a.b/", "x" * 300, "a b", "host:99999999/a", "a\n"]
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Reference.parse(text)


@given(st.text(max_size=80))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    try:
        found = Reference.parse(text)
    except InvalidArgument:
        return
    assert ".." not in found.repository
    assert Reference.parse(str(found)) == found


def test_challenges() -> None:
    asked = Challenge.parse('Bearer realm="https://auth.example/token?a=b",service="registry.example",scope="repository:x/y:pull,push"')
    assert asked.token_url("x/y", plain=False) == "https://auth.example/token?a=b&service=registry.example&scope=repository%3Ax%2Fy%3Apull%2Cpush"
    assert Challenge.parse('basic realm="x \\"y\\""').parameters == {"realm": 'x "y"'}
    with pytest.raises(Forbidden):
        Challenge.parse('Bearer realm="http://auth.example/token"').token_url("x", plain=False)
    for odd in ("", "Negotiate", "Bearer", "Bearer service=x"):
        with pytest.raises(Unsupported):
            Challenge.parse(odd)


@given(st.text(max_size=200), st.binary(max_size=100))
def test_any_challenge_or_token_is_used_or_refused(header: str, body: bytes) -> None:
    with contextlib.suppress(CorralError):
        Challenge.parse(header).token_url("x", plain=True)
    token_of(body)


def _manifest(architecture: str, os: str = "linux", variant: str = "") -> dict[str, object]:
    media = "application/vnd.oci.image.manifest.v1+json"
    return {
        "mediaType": media,
        "digest": digest_of(f"{os}{architecture}{variant}".encode()),
        "size": 1,
        "platform": {"os": os, "architecture": architecture, "variant": variant},
    }


def test_of_several_platforms_the_wanted_one() -> None:
    index = parse(
        Index,
        json.dumps({"manifests": [_manifest("unknown", "unknown"), _manifest("arm64"), _manifest("amd64"), _manifest("amd64", variant="v2")]}).encode(),
        "index",
    )
    for platform in (
        Platform(os="linux", architecture="amd64"),
        Platform(os="linux", architecture="amd64", variant="v2"),
        Platform(os="linux", architecture="arm64"),
    ):
        assert index.choose(platform).digest == digest_of(f"linux{platform.architecture}{platform.variant}".encode())
    with pytest.raises(Unsupported) as none:
        index.choose(Platform(os="linux", architecture="riscv64"))
    assert none.value.hint == "there are: linux/amd64, linux/amd64/v2, linux/arm64"


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["config", "layers", "rootfs", "diff_ids", "manifests", "digest", "size", "mediaType"]), inner, max_size=6)
        ),
    )
)
def test_any_document_is_one_or_refused(document: object) -> None:
    for kind in (Index, Manifest, Config):
        with contextlib.suppress(InvalidArgument):
            parse(kind, json.dumps(document).encode(), "document")


def test_the_chain_of_one_layer_is_that_layer() -> None:
    assert chain([DIGEST]) == DIGEST
    assert chain([DIGEST, DIGEST]) == digest_of(f"{DIGEST} {DIGEST}".encode())
