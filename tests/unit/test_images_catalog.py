"""The catalog of images: what goes in comes out, names move, errors help."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corral.errors import ImageNotFound, InternalError
from corral.ids import new_id
from corral.images.catalog import Catalog, StoredImage, share
from corral.node.interface import ImageSpec
from corral.places import Places

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path / "home")


def image(places: Places, name: str | None, *, age: int = 0) -> StoredImage:
    identity = new_id("im")
    layer = places.layers / identity
    layer.mkdir(parents=True)
    (layer / "file").write_text("content")
    spec = ImageSpec(identity, name, (layer,), env={"A": "b"}, user="user", workdir="/w", command=("/bin/sh", "-c", "x"))
    return StoredImage(spec, NOW - timedelta(seconds=age), 4096, "recipe-1")


def test_what_goes_in_comes_out_by_name_and_by_id(places: Places) -> None:
    stored = image(places, "base")
    Catalog(places).add(stored)
    assert Catalog(places).find("base") == Catalog(places).find(stored.spec.id) == stored
    assert Catalog(places).spec("base") == stored.spec


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(text, text), st.none() | text, st.none() | text, st.none() | st.lists(text).map(tuple), st.none() | text)
def test_any_defaults_come_back(
    places: Places, env: dict[str, str], user: str | None, workdir: str | None, command: tuple[str, ...] | None, recipe: str | None
) -> None:
    stored = StoredImage(ImageSpec(new_id("im"), None, (), env, user, workdir, command), NOW, 0, recipe)
    Catalog(places).add(stored)
    assert Catalog(places).find(stored.spec.id) == stored


def test_an_unknown_image_is_answered_with_the_names_there_are(places: Places) -> None:
    with pytest.raises(ImageNotFound) as nothing:
        Catalog(places).find("base")
    assert "corral setup" in (nothing.value.hint or "")
    catalog = Catalog(places)
    for name in ("tiny", "base", None):
        catalog.add(image(places, name))
    with pytest.raises(ImageNotFound) as error:
        catalog.find("bass")
    assert (error.value.hint, error.value.details["images"]) == ("images here: base, tiny", ["base", "tiny"])


def test_a_newer_image_takes_the_name_and_the_older_stays_by_id(places: Places) -> None:
    catalog = Catalog(places)
    old, new = image(places, "base", age=60), image(places, "base")
    catalog.add(old)
    catalog.add(new)
    assert catalog.find("base") == new
    assert catalog.find(old.spec.id) == replace(old, spec=replace(old.spec, name=None))
    assert [stored.spec.id for stored in catalog.list()] == [new.spec.id, old.spec.id]


def test_what_another_process_adds_is_seen(places: Places) -> None:
    reader, writer = Catalog(places), Catalog(places)
    assert reader.list() == ()
    for number in range(5):
        writer.add(image(places, f"image{number}"))
        assert reader.find(f"image{number}")


def test_a_list_that_has_not_changed_is_not_read_again(places: Places) -> None:
    catalog = Catalog(places)
    catalog.add(image(places, "base"))
    long_ago = time.time() - 100
    os.utime(places.images, (long_ago, long_ago))
    assert catalog.list() is catalog.list()


def test_removing_deletes_layers_that_nobody_else_has(places: Places, tmp_path: Path) -> None:
    catalog = Catalog(places)
    first = image(places, "first")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    second = image(places, "second")
    second = replace(second, spec=replace(second.spec, layers=(first.spec.layers[0], second.spec.layers[0], elsewhere)))
    catalog.add(first)
    catalog.add(second)
    catalog.remove("second")
    assert first.spec.layers[0].exists()
    assert elsewhere.exists()
    assert not (places.layers / second.spec.id).exists()
    catalog.remove(first.spec.id)
    assert list(places.layers.iterdir()) == []
    with pytest.raises(ImageNotFound):
        catalog.remove("first")


def test_another_homes_images_can_be_shared(places: Places, tmp_path: Path) -> None:
    source = Places(tmp_path / "source")
    stored = image(source, "base")
    Catalog(source).add(stored)
    share(places, source, ["base"])
    assert Catalog(places).spec("base").layers == stored.spec.layers
    Catalog(places).remove("base")
    assert stored.spec.layers[0].exists()


def test_a_broken_document_is_named(places: Places) -> None:
    places.images.mkdir(parents=True)
    for content in ("{", "[]", json.dumps({"id": "../x"}), json.dumps({"id": new_id("im")})):
        (places.images / "im-broken.json").write_text(content)
        with pytest.raises(InternalError, match=r"im-broken\.json"):
            Catalog(places).list()
