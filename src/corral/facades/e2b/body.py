"""What E2B's clients send to the control plane."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


def _wire(name: str) -> str:
    return to_camel(name).replace("Id", "ID").replace("Mb", "MB")


class Body(BaseModel):
    """What is not known is refused: an option is honoured or rejected, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_wire)
