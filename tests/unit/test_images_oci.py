"""What strangers write in references, challenges and documents."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.errors import CorralError, Forbidden, InvalidArgument, Unavailable, Unsupported
from corral.images.oci.challenge import Challenge, token_of
from corral.images.oci.documents import Config, Index, Manifest, Platform, chain, digest_of, parse
from corral.images.oci.pace import LEAST, Pace
from corral.images.oci.reference import Reference
from corral.images.pulled import Pulled
from corral.places import Places

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
    for several in (
        'Bearer realm="https://a.example/token",service="a",Basic realm="b"',
        'Negotiate, Bearer realm="https://a.example/token", service=a, Bearer realm="https://b.example/token",service="b"',
        'Negotiate oRQ0==, Digest realm="x, Basic y=z", Bearer  realm = "https://a.example/token" , service = "a"',
    ):
        assert Challenge.parse(several).token_url("x", plain=False) == "https://a.example/token?service=a&scope=repository%3Ax%3Apull"
    assert Challenge.parse('Bearer service="no realm", Basic realm="b", Bearer realm="https://c"') == Challenge("basic", {"realm": "b"})
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


def test_what_projects_have_imported_is_kept_by_many_at_once(tmp_path: Path) -> None:
    pulled = Pulled(Places(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(pulled.put, f"p{number % 2}", f"source {number}", f"im-{number}") for number in range(60)]:
            done.result()
        for done in [pool.submit(pulled.forget, f"im-{number}") for number in range(40)]:
            done.result()
    assert pulled.images("p0") | pulled.images("p1") == {f"im-{number}" for number in range(40, 60)}
    assert pulled.find("p1", "source 41") == "im-41"


def test_what_cannot_be_read_is_imported_again(tmp_path: Path) -> None:
    pulled = Pulled(Places(tmp_path))
    pulled.put("other", "a", "im-a")
    for spoilt in ('{"a": "im-a"}}', "[1]", '{"a": 1}'):
        (tmp_path / "pulled/mine.json").write_text(spoilt)
        assert pulled.find("mine", "a") is None
        pulled.forget("im-b")
        pulled.put("mine", "b", "im-b")
        assert (pulled.find("mine", "b"), pulled.find("other", "a")) == ("im-b", "im-a")


def test_what_drips_is_given_up_and_what_is_taken_slowly_is_not() -> None:
    now = 0.0

    def come(size: int, seconds: float, count: int) -> Iterator[bytes]:
        nonlocal now
        for _ in range(count):
            now += seconds
            yield bytes(size)

    taken = 0
    pace = Pace(lambda: now)
    with pytest.raises(Unavailable, match="too slow: 3 bytes in 60 s"):
        for piece in pace.kept(come(1, 20.0, 100)):
            taken += len(piece)
    assert taken == 2
    pace = Pace(lambda: now)
    for _ in pace.kept(come(LEAST, 1.0, 200)):
        # Who takes them has other things to do.
        now += 1000.0
    # Of one that goes on after a cut, the seconds before that count too.
    pace = Pace(lambda: now)
    assert len(list(pace.kept(come(1, 20.0, 2)))) == 2
    with pytest.raises(Unavailable, match="too slow"):
        list(pace.kept(come(1, 20.0, 1)))
