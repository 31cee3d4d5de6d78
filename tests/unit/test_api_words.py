"""What a client is told: which field, which value, what is allowed; and how a range of bytes is read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from structlog.testing import capture_logs

from corral.api import errors
from corral.api.ranges import Range, parse_range
from corral.errors import CorralError, InternalError, InvalidArgument, NotFound, Unavailable
from corral.schema.account import KeyCreate
from corral.schema.process import ProcessStart
from corral.schema.sandbox import SandboxCreate


def refusal(model: type[BaseModel], body: str) -> InvalidArgument:
    with pytest.raises(ValidationError) as refused:
        model.model_validate_json(body)
    return errors.invalid(refused.value)


@pytest.mark.parametrize(
    ("error", "logged"), [(InternalError("it broke"), True), (KeyError("x"), True), (NotFound("no"), False), (Unavailable("later"), False)]
)
def test_whenever_the_server_says_that_it_failed_its_log_says_where(error: Exception, *, logged: bool) -> None:
    with capture_logs() as lines:
        told = errors.translate(error)
    assert isinstance(told, CorralError)
    assert (told.status == 500) is logged
    assert [line["exc_info"] for line in lines] == ([error] if logged else [])


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ('{"memory": -1}', "memory", ["-1", "less than 64"]),
        ('{"memory": 0}', "memory", ["0", "less than 64"]),
        ('{"memory": "lots"}', "memory", ["'lots'", "whole number"]),
        ('{"memory": 99999999999}', "memory", ["99999999999", "more than 1048576"]),
        ('{"memory": 1e400}', "memory", ["memory"]),
        ('{"memory": 512.5}', "memory", ["512.5", "whole number"]),
        ('{"cpu": 0}', "cpu", ["0", "not more than 0"]),
        ('{"cpu": NaN}', "cpu", ["number"]),
        ('{"timeout": -5}', "timeout", ["-5", "not more than 0"]),
        ('{"timeout": "soon"}', "timeout", ["'soon'", "not a number"]),
        ('{"timeout": 1e12}', "timeout", ["more than"]),
        ('{"name": "Not OK"}', "name", ["'Not OK'", "not allowed"]),
        ('{"name": ""}', "name", ["too short"]),
        (json.dumps({"name": "a" * 64}), "name", ["too long"]),
        ('{"image": 7}', "image", ["7", "not text"]),
        ('{"egress": "nonesuch"}', "egress.default", ["'nonesuch'", "'none'"]),
        ('{"egress": {"rules": [{"to": ["a b"]}]}}', "egress.rules.0.to.0", ["'a b'", "domain"]),
        ('{"on_timeout": "explode"}', "on_timeout", ["'explode'", "'terminate', 'stop' or 'pause'"]),
        ('{"env": {"A=B": "x"}}', "env.A=B.[key]", ["not allowed"]),
        ('{"env": ["A"]}', "env", ["not an object"]),
        ('{"sudo": "perhaps"}', "sudo", ["neither true nor false"]),
        ('{"memroy": 512}', "memroy", ["no such field"]),
        ("[]", "", ["not an object"]),
        ("{", "", ["not JSON"]),
        ('{"image": "\\ud800"}', "", ["not JSON"]),
    ],
)
def test_a_refusal_names_the_field_the_value_and_what_is_allowed(body: str, field: str, words: list[str]) -> None:
    error = refusal(SandboxCreate, body)
    assert error.details["field"] == field
    for word in words:
        assert word in error.message, error.message


def test_all_that_is_wrong_is_in_the_details() -> None:
    error = refusal(SandboxCreate, '{"memory": 1, "cpu": "x", "bogus": 1}')
    assert "and 2 more" in error.message
    assert {one["field"] for one in error.details["errors"]} == {"memory", "cpu", "bogus"}


@pytest.mark.parametrize(("model", "body", "words"), [(KeyCreate, "{}", "name: it is missing"), (ProcessStart, "{}", "give either argv or command")])
def test_what_is_missing_is_said(model: type[BaseModel], body: str, words: str) -> None:
    assert words in refusal(model, body).message


def test_long_values_are_shortened() -> None:
    assert len(refusal(SandboxCreate, json.dumps({"name": "ä" * 100_000})).message) < 300


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_anything_at_all_is_refused_in_one_sentence(value: Any) -> None:
    try:
        SandboxCreate.model_validate_json(json.dumps(value))
    except ValidationError as error:
        refused = errors.invalid(error)
        assert json.loads(errors.body(refused))["error"]["code"] == "invalid_argument"
        assert refused.message


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        (None, None),
        ("bytes=0-0", Range(0, 0)),
        ("bytes=5-", Range(5, None)),
        ("bytes=-7", Range(None, 7)),
        (" Bytes = 1 - 2 ", Range(1, 2)),
        ("bytes=-", None),
        ("bytes=1-2,5-6", None),
        ("lines=1-2", None),
        ("bytes=" + "9" * 19 + "-", None),
    ],
)
def test_ranges(header: str | None, wanted: Range | None) -> None:
    assert parse_range(header) == wanted


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        parse_range("bytes=5-4")
