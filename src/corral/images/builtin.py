"""The images that ship with Corral, made on the machine that needs them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from corral.errors import ImageNotFound, SetupError
from corral.ids import new_id
from corral.images import base, code_interpreter, nodejs, python, scratch, tiny
from corral.images.catalog import IMPORTED, Catalog, StoredImage
from corral.images.debian import Debian
from corral.images.host_mirrors import MARK
from corral.images.python import Python
from corral.images.recipe import OnLine, Recipe
from corral.images.workshop import new_layer, only_builder
from corral.node.interface import ImageSpec
from corral.places import Places

RECIPES: dict[str, Recipe] = {
    "base": base,
    "code-interpreter": code_interpreter,
    "node": nodejs,
    "python": Python("python"),
    "python-science": Python("python-science"),
    "scratch": scratch,
    "tiny": tiny,
}
BENEATH: dict[str, str] = {
    "code-interpreter": code_interpreter.BENEATH,
    "node": nodejs.BENEATH,
    "python": python.BENEATH,
    "python-science": python.BENEATH,
}
"""Images whose files lie on those of another one. They are made when they are first asked for."""
LEFT_SECONDS = 86_400.0
"""After which an image without a name goes from a home of images alone: no test run lasts longer."""


def ensure(places: Places, names: Sequence[str] = ("base", "tiny"), *, on_line: OnLine, host_mirrors: bool = False) -> list[StoredImage]:
    """See that these built-in images exist and were made by today's recipes; builds those that don't.

    Costs milliseconds when nothing is to be done. Needs root for a build. A killed build leaves nothing that counts as an image, and what it leaves is
    cleared away by the next call. Raises `ImageNotFound` for a name that is not built in, else as `Recipe.build`.
    """
    recipes = {name: RECIPES.get(name) or Debian.named(name) for name in names}
    for name, recipe in recipes.items():
        if recipe is None:
            raise ImageNotFound(f"Corral has no built-in image {name!r}", hint=f"built in: {', '.join(sorted(RECIPES))}")
    catalog = Catalog(places)
    with only_builder(places):
        return [
            _ensure_one(places, catalog, name, recipe, on_line=on_line, host_mirrors=host_mirrors) for name, recipe in recipes.items() if recipe is not None
        ]


def outdated(catalog: Catalog) -> list[str]:
    """The names of built-in images here that would be made otherwise today, mirrors aside; `ensure` makes them anew. Milliseconds."""
    found: list[str] = []
    for image in catalog.list():
        if image.spec.name in RECIPES and image.recipe is not None:
            try:
                key = RECIPES[image.spec.name].key(host_mirrors=False)
            except SetupError:
                # Made elsewhere, and brought to a machine that can't make images.
                continue
            if image.recipe.partition(MARK)[0] != key:
                found.append(image.spec.name)
    return sorted(found)


def is_left(image: StoredImage) -> bool:
    """Whether it shipped with Corral or was made of a distribution, and has lost its name to a newer one."""
    return image.spec.name is None and image.recipe is not None and not image.recipe.startswith(IMPORTED)


def sweep(places: Places, *, on_line: OnLine, now: float | None = None) -> None:
    """Remove images that have lost their names, from a home in which no server has run: other homes may share them, but only for a while.

    Where a server runs, it removes those on which nothing stands.
    """
    if places.keys.exists():
        return
    catalog, now = Catalog(places), time.time() if now is None else now
    with only_builder(places):
        for image in catalog.list():
            if is_left(image) and now - catalog.changed(image) > LEFT_SECONDS:
                catalog.remove(image.spec.id)
                on_line(f"removed an image of an earlier version on which nothing stands: {image.spec.id}, {image.size / 1e6:.0f} MB")


def _ensure_one(places: Places, catalog: Catalog, name: str, recipe: Recipe, *, on_line: OnLine, host_mirrors: bool) -> StoredImage:
    key = recipe.key(host_mirrors=host_mirrors)
    for image in catalog.list():
        if image.spec.name in (name, None) and image.recipe == key and all(layer.exists() for layer in image.spec.layers):
            named = replace(image, spec=replace(image.spec, name=name))
            if image != named:
                # It lost its name to one of another recipe, and gets it back.
                catalog.add(named)
            return named
    began = time.monotonic()
    on_line(f"image {name}: building")
    identity = new_id("im")
    cache = places.home / "cache"
    cache.mkdir(mode=0o755, exist_ok=True)
    lower = _ensure_one(places, catalog, BENEATH[name], RECIPES[BENEATH[name]], on_line=on_line, host_mirrors=host_mirrors).spec if name in BENEATH else None
    with new_layer(places, identity) as root:
        defaults = recipe.build(root, cache=cache, on_line=on_line, host_mirrors=host_mirrors)
    layer = places.layers / identity
    size = tree_size(layer)
    layers, env = (layer,), defaults.env
    if lower is not None:
        layers, env = (*lower.layers, layer), {**lower.env, **env, "PATH": env.get("PATH", "") + lower.env["PATH"]}
    spec = ImageSpec(identity, name, layers, env=env, user=defaults.user, workdir=defaults.workdir, command=defaults.command)
    image = StoredImage(spec, datetime.now(UTC), size, key)
    catalog.add(image)
    on_line(f"image {name}: ready, {size / 1e6:.0f} MB in {time.monotonic() - began:.0f} s")
    return image


def tree_size(root: Path) -> int:
    """Bytes that the files below take on disk, hard links counted once."""
    seen: set[int] = set()
    total = 0
    for directory, _, files in os.walk(root):
        for name in files:
            status = Path(directory, name).lstat()
            if status.st_nlink == 1 or status.st_ino not in seen:
                total += status.st_blocks * 512
                seen.add(status.st_ino)
    return total
