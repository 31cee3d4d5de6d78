"""What E2B's clients ask in Corral's words: steps of templates, network options, signs of life in streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import Request

from corral.facades.e2b.envd import connect
from corral.facades.e2b.envd.connect import Message
from corral.facades.e2b.network import Egress, policy
from corral.facades.e2b.refusal import Refused
from corral.facades.e2b.rest.recipe import Recipe, Template, recipe
from corral.schema.egress import Preset


def made(**wanted: Any) -> Recipe:
    asked = Template.model_validate(wanted)
    return recipe(asked, is_here=lambda ref: ref == "ubuntu:22.04", upload=lambda name: name * 64, size={}, project="default")


def test_each_step_that_makes_files_has_the_place_it_was_asked_for_at() -> None:
    steps = [
        {"type": "ENV", "args": ["A", "1"]},
        {"type": "RUN", "args": ["true", "root"]},
        {"type": "WORKDIR", "args": ["/w"]},
        {"type": "USER", "args": ["root"]},
        {"type": "WORKDIR", "args": ["/v"]},
        {"type": "COPY", "args": ["a", "b"], "filesHash": "0"},
        {"type": "RUN", "args": ["false"]},
    ]
    known = made(fromTemplate="base", steps=steps, readyCmd="true")
    counted = [step for step in known.definition.steps if step.do in ("run", "copy")]
    assert known.places == ("2", "3", "6", "7", "finalize")
    assert len(counted) == len(known.places)
    assert [known.place(number) for number in (None, 0, 1, 4, 99)] == ["base", "base", "2", "7", "base"]
    assert made(fromImage="debian:12", steps=steps[:2]).places == ("base", "2"), "a registry's image is first given a user"


@pytest.mark.parametrize(
    ("wanted", "default", "rules"),
    [
        ({}, Preset.PUBLIC, []),
        ({"denyOut": ["0.0.0.0/0"]}, Preset.NONE, []),
        ({"denyOut": ["8.8.8.8"]}, Preset.PUBLIC, [("deny", ["8.8.8.8/32"])]),
        ({"denyOut": ["0.0.0.0/0"], "allowOut": ["1.1.1.1", "*.example.com"]}, Preset.NONE, [("allow", ["1.1.1.1/32", "*.example.com"])]),
        ({"denyOut": ["10.0.0.0/30"], "allowOut": ["10.0.0.0/31"]}, Preset.PUBLIC, [("deny", ["10.0.0.2/31"]), ("allow", ["10.0.0.0/31"])]),
    ],
)
def test_what_is_allowed_wins_over_what_is_denied(wanted: dict[str, Any], default: Preset, rules: list[tuple[str, list[str]]]) -> None:
    found = policy(Egress.model_validate(wanted), internet=None)
    assert (found.default, [(rule.action, rule.to) for rule in found.rules]) == (default, rules)


def test_a_secret_goes_where_its_placeholder_is() -> None:
    rules = {"api.example.com": [{"transform": {"headers": {"Authorization": "Bearer ${e2b.secrets.OpenAI-api-key}"}}}]}
    found = policy(Egress.model_validate({"rules": rules}), internet=None)
    assert found.rules[0].inject == {"Authorization": "Bearer {{openai-api-key}}"}
    assert found.secrets == {"openai-api-key"}
    with pytest.raises(Refused, match="workload identity"):
        policy(Egress.model_validate({"rules": {"a.test": [{"transform": {"headers": {"A": "${e2b.identity.tokens.x}"}}}]}}), internet=None)


async def test_a_silent_stream_says_that_it_lives() -> None:
    over = asyncio.Event()

    async def messages() -> AsyncGenerator[Message]:
        yield {"n": 1}
        await over.wait()
        yield {"n": 2}

    heard: list[bytes] = []
    async for piece in connect._told(messages(), sign={"keepalive": {}}, every=0.01, timeout=None):
        heard.append(piece)
        if len(heard) > 3:
            over.set()
    assert heard[0] == connect.envelope({"n": 1})
    assert set(heard[1:-2]) == {connect.envelope({"keepalive": {}})}
    assert heard[-2:] == [connect.envelope({"n": 2}), connect.trailer()]


async def test_a_call_ends_at_its_deadline() -> None:
    async def messages() -> AsyncGenerator[Message]:
        await asyncio.Event().wait()
        yield {}

    heard = [piece async for piece in connect._told(messages(), sign={"keepalive": {}}, every=60, timeout=0.01)]
    assert heard == [connect.trailer(connect.RpcError(connect.Code.DEADLINE_EXCEEDED, "the deadline of the call has passed"))]


@pytest.mark.parametrize(("given", "seconds"), [(None, connect.PING), ("50", 50.0), ("0", connect.PING), ("x", connect.PING), ("99999", connect.PING)])
def test_clients_say_how_often_a_stream_is_to_say_that_it_lives(given: str | None, seconds: float) -> None:
    headers = [] if given is None else [(b"keepalive-ping-interval", given.encode())]
    assert connect.ping(Request({"type": "http", "headers": headers})) == seconds
