"""`corral up` and `corral down`: the server of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Home = Annotated[Path | None, typer.Option(help="Where Corral keeps its state [default: $CORRAL_HOME, else /var/lib/corral for root].")]


def up() -> None:
    pass


def down() -> None:
    pass
