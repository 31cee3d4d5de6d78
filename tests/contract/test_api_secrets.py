"""Secrets over HTTP: what they hold goes in and never comes out again, but where it was asked for."""

from __future__ import annotations

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness.api import Api
from harness.server import Server

VALUE = "s3cr3t-" + uuid.uuid4().hex


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with contextlib.closing(Api(server)) as api:
        yield api


@pytest.fixture
def secret(api: Api) -> Iterator[Callable[..., str]]:
    made: list[str] = []

    def make(value: str = VALUE) -> str:
        name = f"S_{uuid.uuid4().hex[:10]}"
        api.ok("POST", "/v1/secrets", status=201, json={"name": name, "value": value})
        made.append(name)
        return name

    yield make
    for name in made:
        assert api.request("DELETE", f"/v1/secrets/{name}").status_code in (204, 404)


@pytest.fixture
def stranger(api: Api, server: Server) -> Iterator[Api]:
    """A member of another project."""
    name = f"p-{uuid.uuid4().hex[:8]}"
    api.ok("POST", "/v1/projects", status=201, json={"name": name})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "k", "project": name, "role": "member"})
    with contextlib.closing(Api(server, key["value"])) as other:
        yield other
    api.ok("DELETE", f"/v1/projects/{name}", status=204)


def traces(server: Server, value: str) -> list[str]:
    """Files of the installation, at rest or at work, that hold this text."""
    from corral.places import Places

    places = Places(server.home)
    roots = [places.home / "keys", places.spool, places.logs, places.boxes, *places.home.glob("corral.db*"), server.log]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*"))]
    return [str(file) for file in files if file.is_file() and value.encode() in file.read_bytes()]


def test_a_life_without_its_value(api: Api, server: Server) -> None:
    name = f"S_{uuid.uuid4().hex[:10]}"
    made = api.ok("POST", "/v1/secrets", status=201, json={"name": name, "value": VALUE, "tags": {"for": "tests"}})
    assert made["id"].startswith("se-")
    assert made.keys() == {"id", "name", "project", "version", "tags", "created_at", "changed_at", "used_at"}
    assert (made["version"], made["tags"]) == (1, {"for": "tests"})
    assert api.ok("GET", f"/v1/secrets/{name}") == made
    assert made in api.ok("GET", "/v1/secrets")["secrets"]
    assert api.refused("conflict", "POST", "/v1/secrets", json={"name": name, "value": "x"})["hint"]
    changed = api.ok("PUT", f"/v1/secrets/{name}", json={"name": name, "value": VALUE + "2"})
    assert changed["id"] == made["id"]
    assert changed["changed_at"] > made["changed_at"]
    assert (changed["version"], changed["tags"]) == (2, {"for": "tests"})
    again = api.ok("PUT", f"/v1/secrets/{name}", json={"name": name, "value": VALUE, "tags": {}})
    assert (again["version"], again["tags"]) == (3, {})
    assert api.ok("GET", f"/v1/secrets/{name}") == again
    api.refused("invalid_argument", "PUT", f"/v1/secrets/{name}", json={"name": "ANOTHER", "value": "x"})
    api.ok("DELETE", f"/v1/secrets/{name}", status=204)
    for method, body in (("GET", None), ("DELETE", None), ("PUT", {"name": name, "value": "x"})):
        api.refused("not_found", method, f"/v1/secrets/{name}", **({"json": body} if body else {}))
    told = [event for event in api.ok("GET", "/v1/events", params={"limit": 10_000})["events"] if event["data"].get("name") == name]
    assert [event["kind"] for event in told] == ["secret.created", "secret.changed", "secret.changed", "secret.deleted"]
    assert VALUE not in json.dumps(told)
    assert traces(server, VALUE) == []
    key = server.home / "keys" / "secrets.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)


@pytest.mark.parametrize(
    "body",
    [
        {"value": VALUE},
        {"name": "N"},
        {"name": "with space", "value": VALUE},
        {"name": "N", "value": VALUE, "extra": VALUE},
        {"name": "N", "value": [VALUE]},
        {"name": "N", "value": {VALUE: VALUE}},
        {"name": "N", "value": VALUE * 4000},
        {"name": "N", "value": ""},
        {"name": "x" * 129, "value": VALUE},
        [VALUE],
        VALUE,
    ],
    ids=str,
)
def test_what_is_wrong_is_said_without_the_value(api: Api, server: Server, body: Any) -> None:
    error = api.refused("invalid_argument", "POST", "/v1/secrets", json=body)
    assert VALUE not in json.dumps(error)
    assert traces(server, VALUE) == []


def test_a_name_that_no_variable_can_have_is_given_another_inside(api: Api) -> None:
    name = f"api-key-{uuid.uuid4().hex[:10]}"
    api.ok("POST", "/v1/secrets", status=201, json={"name": name, "value": VALUE})
    error = api.refused("invalid_argument", "POST", "/v1/sandboxes", json={"image": "tiny", "secrets": [{"name": name}]})
    assert "env" in error["message"]
    box = api.create(secrets=[{"name": name, "env": "API_KEY"}])
    assert api.run(box["id"], "echo $API_KEY")[0] == f"{VALUE}\n".encode()
    api.delete(box["id"])
    api.ok("DELETE", f"/v1/secrets/{name}", status=204)


def test_broken_json_is_not_repeated(api: Api) -> None:
    assert VALUE not in json.dumps(api.refused("invalid_argument", "POST", "/v1/secrets", content=b'{"name": "N", "value": "' + VALUE.encode()))


def test_what_is_not_yours_does_not_exist(api: Api, stranger: Api, secret: Callable[..., str]) -> None:
    name = secret()
    stranger.refused("not_found", "GET", f"/v1/secrets/{name}")
    stranger.refused("not_found", "PUT", f"/v1/secrets/{name}", json={"name": name, "value": "x"})
    stranger.refused("not_found", "DELETE", f"/v1/secrets/{name}")
    assert stranger.ok("GET", "/v1/secrets") == {"secrets": []}
    error = stranger.refused("not_found", "POST", "/v1/sandboxes", status=404, json={"image": "tiny", "secrets": [{"name": name}]})
    assert (name in error["message"], "corral secret create" in error["hint"]) == (True, True)
    stranger.ok("POST", "/v1/secrets", status=201, json={"name": name, "value": "theirs"})
    box = api.create(secrets=[{"name": name}])
    assert api.run(box["id"], f"echo ${name}")[0] == f"{VALUE}\n".encode()
    api.delete(box["id"])


def test_a_later_project_of_the_same_name_has_none_of_them(api: Api) -> None:
    project = f"p-{uuid.uuid4().hex[:8]}"
    inside = {"Corral-Project": project}
    for made in (1, 0):
        api.ok("POST", "/v1/projects", status=201, json={"name": project})
        if made:
            api.ok("POST", "/v1/secrets", status=201, json={"name": "S", "value": VALUE}, headers=inside)
        assert len(api.ok("GET", "/v1/secrets", headers=inside)["secrets"]) == made
        api.ok("DELETE", f"/v1/projects/{project}", status=204)


def test_a_reader_looks_and_changes_nothing(api: Api, server: Server, secret: Callable[..., str]) -> None:
    name = secret()
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "r", "role": "reader"})
    with contextlib.closing(Api(server, key["value"])) as reader:
        assert reader.ok("GET", f"/v1/secrets/{name}")["name"] == name
        reader.refused("forbidden", "POST", "/v1/secrets", status=403, json={"name": "N", "value": "x"})
        reader.refused("forbidden", "PUT", f"/v1/secrets/{name}", status=403, json={"name": name, "value": "x"})
        reader.refused("forbidden", "DELETE", f"/v1/secrets/{name}", status=403)
    api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)


def test_repeated_with_its_idempotency_key_it_is_the_same(api: Api, server: Server) -> None:
    name, headers = f"S_{uuid.uuid4().hex[:10]}", {"Idempotency-Key": uuid.uuid4().hex}
    body = {"name": name, "value": VALUE}
    first = api.ok("POST", "/v1/secrets", status=201, json=body, headers=headers)
    assert api.ok("POST", "/v1/secrets", status=201, json=body, headers=headers) == first
    assert headers["Idempotency-Key"].encode() not in b"".join(path.read_bytes() for path in server.home.glob("corral.db*"))
    api.ok("DELETE", f"/v1/secrets/{name}", status=204)


def test_of_many_at_once_one_makes_it(api: Api, server: Server) -> None:
    name, statuses = f"S_{uuid.uuid4().hex[:10]}", list[int]()

    def make() -> None:
        with contextlib.closing(Api(server)) as other:
            statuses.append(other.request("POST", "/v1/secrets", json={"name": name, "value": VALUE}).status_code)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [201] + [409] * 7
    api.ok("DELETE", f"/v1/secrets/{name}", status=204)


def test_as_a_variable_it_is_inside_and_nowhere_else(api: Api, server: Server, secret: Callable[..., str]) -> None:
    name = secret("two words\n'quoted' ünï " + VALUE)
    box = api.create(env={"A": "1"}, secrets=[{"name": name, "env": "TOKEN"}])
    assert box["secrets"] == [{"name": name, "env": "TOKEN"}]
    assert box["env"] == {"A": "1"}
    shown = api.run(box["id"], 'printf %s "$TOKEN"')[0].decode()
    assert shown == "two words\n'quoted' ünï " + VALUE
    assert api.run(box["id"], 'printf %s "$TOKEN"', env={"TOKEN": "other"})[0] == b"other"
    assert api.ok("GET", f"/v1/secrets/{name}")["used_at"] is not None
    path = f"/v1/sandboxes/{box['id']}"
    for answer in (
        api.ok("GET", path),
        api.ok("GET", "/v1/sandboxes"),
        api.ok("GET", "/v1/events", params={"sandbox": box["id"]}),
        api.ok("GET", f"{path}/logs"),
    ):
        assert VALUE not in json.dumps(answer)
    # The output above was asked for; everything else has no trace of it.
    assert [file for file in traces(server, VALUE) if "/spool/" not in file] == []
    api.delete(box["id"])
    assert traces(server, VALUE) == []


def test_it_is_there_after_a_stop_and_after_a_restart_with_the_value_of_the_last_start(api: Api, server: Server, secret: Callable[..., str]) -> None:
    name = secret("old")
    box = api.create(secrets=[{"name": name}])

    def inside() -> bytes:
        return api.run(box["id"], f"echo ${name}")[0]

    server.kill()
    server.start()
    assert inside() == b"old\n"
    api.ok("PUT", f"/v1/secrets/{name}", json={"name": name, "value": "new"})
    assert inside() == b"old\n"
    api.ok("POST", f"/v1/sandboxes/{box['id']}/stop")
    server.kill()
    server.start()
    api.ok("POST", f"/v1/sandboxes/{box['id']}/start")
    assert inside() == b"new\n"
    api.refused("conflict", "DELETE", f"/v1/secrets/{name}", status=409)
    api.delete(box["id"])


@pytest.mark.parametrize(
    "fields",
    [
        {"secrets": [{"name": "S"}, {"name": "T", "env": "S"}]},
        {"secrets": [{"name": "S"}, {"name": "S"}]},
        {"secrets": [{"name": "S"}], "env": {"S": "x"}},
        {"secrets": ["S"]},
        {"secrets": [{"name": "S", "env": "A=B"}]},
        {"secrets": [{"name": f"S{number}"} for number in range(65)]},
    ],
    ids=str,
)
def test_variables_that_can_not_be(api: Api, fields: dict[str, Any]) -> None:
    api.refused("invalid_argument", "POST", "/v1/sandboxes", json={"image": "tiny", **fields})


def test_what_no_variable_can_hold_is_refused_and_leaves_nothing(api: Api, secret: Callable[..., str]) -> None:
    name, word = secret("a\0b"), f"w-{uuid.uuid4().hex[:8]}"
    assert "NUL" in api.refused("invalid_argument", "POST", "/v1/sandboxes", json={"image": "tiny", "name": word, "secrets": [{"name": name}]})["message"]
    api.refused("not_found", "GET", f"/v1/sandboxes/{word}")


def test_variables_that_are_too_long_together_are_refused_and_leave_nothing(api: Api, secret: Callable[..., str]) -> None:
    names, word = [secret("x" * 60_000) for _ in range(3)], f"w-{uuid.uuid4().hex[:8]}"
    body = {"image": "tiny", "name": word, "secrets": [{"name": name} for name in names]}
    assert "too long" in api.refused("invalid_argument", "POST", "/v1/sandboxes", json=body)["message"]
    api.refused("not_found", "GET", f"/v1/sandboxes/{word}")
    box = api.create(secrets=body["secrets"][:2])
    assert api.run(box["id"], f'echo "${{#{names[1]}}}"')[0] == b"60000\n"
    api.delete(box["id"])


def test_a_key_that_others_can_read_is_not_used(api: Api, server: Server, secret: Callable[..., str]) -> None:
    name = secret()
    key = server.home / "keys" / "secrets.key"
    key.chmod(0o644)
    server.kill()
    server.start()
    error = api.refused("setup", "POST", "/v1/sandboxes", json={"image": "tiny", "secrets": [{"name": name}]})
    assert "chmod 600" in error["hint"]
    key.chmod(0o600)
    box = api.create(secrets=[{"name": name}])
    api.delete(box["id"])
