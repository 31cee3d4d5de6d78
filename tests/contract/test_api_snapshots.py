"""Snapshots and checkpoints over HTTP, on the real engine: what they hold, who may have them, what keeps them, how to go back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from corral.places import Places
from harness.api import Api, data
from harness.server import Server


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture
def mark() -> str:
    """A word that only this test uses."""
    return uuid.uuid4().hex[:12]


@pytest.fixture
def box(api: Api) -> Iterator[str]:
    box = api.create()["id"]
    yield box
    api.delete(box)


def snapshot(api: Api, box: str, **fields: Any) -> dict[str, Any]:
    return api.ok("POST", f"/v1/sandboxes/{box}/snapshots", status=201, json=fields)


def remove(api: Api, *snapshots: str) -> None:
    for id in snapshots:
        api.ok("DELETE", f"/v1/snapshots/{id}")


def test_a_snapshot_is_an_image_by_its_id_and_its_name(api: Api, box: str, mark: str) -> None:
    api.run(box, "echo kept > /kept")
    made = snapshot(api, box, name=f"s-{mark}")
    assert (made["name"], made["sandbox"], made["image"], made["disk"], made["checkpoint"]) == (f"s-{mark}", box, "tiny", 4096, False)
    assert made["size"] > 0
    assert made["timing"]["total"] >= made["timing"]["stopped"]
    api.run(box, "echo later > /kept")
    children = [api.create(image=image) for image in (made["id"], made["name"])]
    assert [child["image"] for child in children] == [made["id"], made["name"]]
    assert [api.run(child["id"], "cat /kept")[0] for child in children] == [b"kept\n"] * 2
    one = api.ok("GET", f"/v1/snapshots/{made['name']}")
    assert one["unshared"] >= 0
    assert {**made, "timing": None, "unshared": None} == {**one, "unshared": None}
    for child in children:
        api.delete(child["id"])
    remove(api, made["id"])
    api.refused("not_found", "GET", f"/v1/snapshots/{made['id']}")
    api.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": made["id"]})


def test_a_name_is_the_projects(api: Api, box: str, mark: str) -> None:
    made = snapshot(api, box, name=f"s-{mark}")
    error = api.refused("conflict", "POST", f"/v1/sandboxes/{box}/snapshots", json={"name": f"s-{mark}"})
    assert error["details"]["snapshot"] == made["id"]
    api.refused("conflict", "POST", f"/v1/sandboxes/{box}/snapshots", json={"name": "tiny"})
    remove(api, made["id"])
    again = snapshot(api, box, name=f"s-{mark}")
    remove(api, again["name"])


def test_a_snapshot_in_use_stays_until_its_last_user_has_ended(api: Api, box: str, server: Server) -> None:
    def on_disk() -> set[str]:
        return {path.stem for path in Places(server.home).snapshots.glob("sn-*.img")}

    api.run(box, "echo 1 > /file")
    first = snapshot(api, box)["id"]
    child = api.create(image=first)["id"]
    api.run(child, "echo 2 >> /file")
    second = snapshot(api, child)["id"]
    error = api.refused("conflict", "DELETE", f"/v1/snapshots/{first}", status=409)
    assert error["details"] == {"sandboxes": [child], "snapshots": []}
    api.ok("POST", f"/v1/sandboxes/{child}/stop")
    api.refused("conflict", "DELETE", f"/v1/snapshots/{first}")
    api.ok("DELETE", f"/v1/snapshots/{first}", params={"cascade": True})
    for gone in (first, second):
        api.refused("not_found", "GET", f"/v1/snapshots/{gone}")
    assert first in on_disk()
    assert second not in on_disk()
    api.ok("POST", f"/v1/sandboxes/{child}/start")
    assert api.run(child, "cat /file")[0] == b"1\n2\n"
    with api.events("GET", "/v1/events", params={"sandbox": child, "follow": True}) as events:
        api.delete(child)
        assert any(event["kind"] == "sandbox.terminated" for event in map(data, events))
    # What is removed behind the answer is gone when the next change of the kind is.
    remove(api, snapshot(api, box)["id"])
    assert first not in on_disk()


def test_cascade_takes_what_was_made_of_it(api: Api, box: str) -> None:
    first = snapshot(api, box)["id"]
    child = api.create(image=first)["id"]
    second = snapshot(api, child)["id"]
    api.delete(child)
    error = api.refused("conflict", "DELETE", f"/v1/snapshots/{first}")
    assert error["details"] == {"sandboxes": [], "snapshots": [second]}
    api.ok("DELETE", f"/v1/snapshots/{first}", params={"cascade": True})
    api.refused("not_found", "GET", f"/v1/snapshots/{second}")


def test_lists_are_paged(api: Api, box: str) -> None:
    made = [snapshot(api, box)["id"] for _ in range(5)]
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = api.ok("GET", "/v1/snapshots", params={"sandbox": box, "limit": 2, **({"cursor": cursor} if cursor else {})})
        found += [one["id"] for one in page["snapshots"]]
        if (cursor := page["next"]) is None:
            break
    assert found == made[::-1]
    remove(api, *made)


def test_a_repeated_request_makes_one(api: Api, box: str, mark: str) -> None:
    path, headers = f"/v1/sandboxes/{box}/snapshots", {"Idempotency-Key": mark}

    def ask(_number: int) -> str:
        return api.ok("POST", path, status=201, json={}, headers=headers)["id"]

    with ThreadPoolExecutor(4) as threads:
        made = set(threads.map(ask, range(4)))
    assert len(made) == 1
    remove(api, *made)


def test_another_project_sees_and_starts_none_of_it(api: Api, server: Server, box: str, mark: str) -> None:
    api.ok("POST", "/v1/projects", status=201, json={"name": f"p-{mark}"})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "other", "project": f"p-{mark}"})
    other = Api(server, key["value"])
    made = snapshot(api, box, name=f"s-{mark}")
    for ref in (made["id"], made["name"]):
        other.refused("not_found", "GET", f"/v1/snapshots/{ref}", status=404)
        other.refused("not_found", "DELETE", f"/v1/snapshots/{ref}", status=404)
        other.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": ref})
    assert other.ok("GET", "/v1/snapshots")["snapshots"] == []
    for path in ("snapshots", "checkpoints", "rewind"):
        body = {"checkpoint": "a"} if path == "rewind" else {"name": "a"}
        other.refused("not_found", "POST", f"/v1/sandboxes/{box}/{path}", status=404, json=body)
    other.close()
    remove(api, made["id"])
    api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
    api.ok("DELETE", f"/v1/projects/p-{mark}", status=204)


def test_a_snapshot_that_is_shared_is_anothers_image_and_not_anothers_to_change(api: Api, server: Server, box: str, mark: str) -> None:
    project = f"p-{mark}"
    api.ok("POST", "/v1/projects", status=201, json={"name": project})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "other", "project": project})
    other = Api(server, key["value"])
    api.run(box, "echo shared > /file")
    made, private = snapshot(api, box, name=f"s-{mark}"), snapshot(api, box)
    id = made["id"]
    api.refused("not_found", "PATCH", f"/v1/snapshots/{id}", json={"shared_with": [project, "nobody"]})
    other.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": id})
    # By its owner's word, and not by another's.
    other.refused("not_found", "PATCH", f"/v1/snapshots/{id}", json={"shared_with": [project]})
    assert api.ok("PATCH", f"/v1/snapshots/{id}", json={"shared_with": [project]})["shared_with"] == [project]
    # It outlives the server that was told.
    server.kill()
    server.start()
    assert [one["id"] for one in other.ok("GET", "/v1/snapshots", params={"shared": True})["snapshots"]] == [id]
    assert other.ok("GET", "/v1/snapshots")["snapshots"] == []
    assert (shown := other.ok("GET", f"/v1/snapshots/{id}"))["project"] == "default"
    assert shown["shared_with"] == [project]
    theirs = other.create(image=id)["id"]
    assert other.run(theirs, "cat /file; echo theirs >> /file; cat /file")[0] == b"shared\nshared\ntheirs\n"
    on_it = snapshot(other, theirs)["id"]
    # Names are the project's, and what is not shared is not there.
    for ref in (made["name"], private["id"]):
        other.refused("not_found", "GET", f"/v1/snapshots/{ref}", status=404)
        other.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": ref})
    other.refused("not_found", "DELETE", f"/v1/snapshots/{id}", status=404)
    other.refused("conflict", "PUT", f"/v1/templates/t-{mark}", json={"image": id})
    # The owner is told how much stands on it, and takes nothing of another's along.
    error = api.refused("conflict", "DELETE", f"/v1/snapshots/{id}")
    assert error["details"] == {"sandboxes": [], "snapshots": [], "others": 1}
    assert theirs not in str(error)
    assert api.ok("PATCH", f"/v1/snapshots/{id}", json={"shared_with": []})["shared_with"] == []
    other.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": id})
    api.ok("DELETE", f"/v1/snapshots/{id}", params={"cascade": True})
    other.ok("POST", f"/v1/sandboxes/{theirs}/stop")
    other.ok("POST", f"/v1/sandboxes/{theirs}/start")
    assert other.run(theirs, "cat /file")[0] == b"shared\ntheirs\n"
    other.delete(theirs)
    again = other.create(image=on_it)["id"]
    assert other.run(again, "cat /file")[0] == b"shared\ntheirs\n"
    other.delete(again)
    other.ok("DELETE", f"/v1/snapshots/{on_it}")
    point = api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "mine"})["id"]
    api.refused("invalid_argument", "PATCH", f"/v1/snapshots/{point}", json={"shared_with": [project]})
    # A later project of that name is another.
    api.ok("PATCH", f"/v1/snapshots/{private['id']}", json={"shared_with": [project]})
    other.close()
    api.ok("DELETE", f"/v1/projects/{project}", status=204)
    assert api.ok("GET", f"/v1/snapshots/{private['id']}")["shared_with"] == []
    remove(api, private["id"])


def test_the_disk_of_a_paused_sandbox_is_kept_and_compared_without_waking_it(api: Api, box: str) -> None:
    api.run(box, "echo before > /file")
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "before"})
    api.run(box, "echo paused > /file; echo unsynced > /new")
    paused = api.ok("POST", f"/v1/sandboxes/{box}/pause")
    assert "runsc" in paused["detail"]
    kept = snapshot(api, box)["id"]
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "while-paused"})
    changes = api.ok("GET", f"/v1/sandboxes/{box}/diff", params={"before": "before"})["changes"]
    assert [(one["path"], one["change"]) for one in changes] == [("/file", "changed"), ("/new", "added")]
    error = api.refused("invalid_state", "POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "before"})
    assert "resume" in error["hint"]
    assert api.ok("GET", f"/v1/sandboxes/{box}")["state"] == "paused"
    child = api.create(image=kept)["id"]
    assert api.run(child, "cat /file /new")[0] == b"paused\nunsynced\n"
    api.delete(child)
    # And it goes on where it was.
    assert api.run(box, "cat /file; echo on >> /new; cat /new")[0] == b"paused\nunsynced\non\n"
    assert api.ok("GET", f"/v1/sandboxes/{box}")["detail"] is None
    remove(api, kept)


def test_snapshots_count_for_the_quota_of_disk(api: Api, server: Server, mark: str) -> None:
    api.ok("POST", "/v1/projects", status=201, json={"name": f"p-{mark}", "max_disk": 4100})
    key = api.ok("POST", "/v1/keys", status=201, json={"name": "small", "project": f"p-{mark}"})
    small = Api(server, key["value"])
    box = small.create()["id"]
    made: list[str] = []
    small.run(box, "head -c 1000000 /dev/urandom > /file")
    with pytest.raises(AssertionError, match="quota_exceeded"):
        made.extend(snapshot(small, box)["id"] for _ in range(5))
    assert made
    remove(small, *made)
    small.delete(box)
    small.close()
    api.ok("DELETE", f"/v1/keys/{key['id']}", status=204)
    api.ok("DELETE", f"/v1/projects/p-{mark}", status=204)


def test_rewinding_brings_back_the_disk_and_keeps_the_present(api: Api, box: str) -> None:
    api.run(box, "echo 1 > /file; rm /bin/yes")
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "first"})
    api.refused("conflict", "POST", f"/v1/sandboxes/{box}/checkpoints", json={"name": "first"})
    before = api.ok("GET", f"/v1/sandboxes/{box}")
    api.run(box, "echo 2 > /file; mkdir -p /new/dir; rm /etc/group")
    back = api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "first"})
    assert (back["state"], back["deadline"]) == ("running", before["deadline"])
    assert api.run(box, "cat /file; ls -d /new /etc/group; ls /bin/yes")[0] == b"1\n/etc/group\n"
    names = [one["name"] for one in api.ok("GET", f"/v1/sandboxes/{box}/checkpoints")["checkpoints"]]
    assert names == ["first", "before-rewind-1"]
    api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "before-rewind-1"})
    assert api.run(box, "cat /file; ls -d /new/dir")[0] == b"2\n/new/dir\n"
    api.ok("POST", f"/v1/sandboxes/{box}/stop")
    assert api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "first"})["state"] == "stopped"
    api.ok("POST", f"/v1/sandboxes/{box}/start")
    assert api.run(box, "cat /file")[0] == b"1\n"
    api.refused("not_found", "POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "nothing"})
    api.ok("DELETE", f"/v1/sandboxes/{box}/checkpoints/first")
    api.refused("not_found", "POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "first"})


def test_checkpoints_come_by_themselves_and_go_with_their_sandbox(api: Api, server: Server) -> None:
    box = api.create(checkpoint_every=2)["id"]
    with api.events("GET", "/v1/events", params={"sandbox": box, "kind": "checkpoint.created", "follow": True}) as events:
        for number in range(1, 5):
            api.run(box, f"echo {number} > /file")
            if number % 2 == 0:
                assert data(next(events))["data"]["name"] == f"auto-{number // 2}"
    found = api.ok("GET", f"/v1/sandboxes/{box}/checkpoints")["checkpoints"]
    assert [(one["name"], one["automatic"], one["created_by"]) for one in found] == [("auto-1", True, "node"), ("auto-2", True, "node")]
    api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": "auto-1"})
    assert api.run(box, "cat /file")[0] == b"2\n"
    assert api.ok("GET", "/v1/snapshots", params={"sandbox": box})["snapshots"] == []
    api.delete(box)
    api.refused("image_not_found", "POST", "/v1/sandboxes", json={"image": found[0]["id"]})


def changes(api: Api, box: str, **query: Any) -> dict[str, tuple[str, str]]:
    answer = api.ok("GET", f"/v1/sandboxes/{box}/diff", params=query)
    assert not answer["incomplete"]
    return {one["path"]: (one["change"], one["type"]) for one in answer["changes"]}


def test_a_diff_tells_what_changed_and_nothing_else(api: Api, box: str) -> None:
    api.run(
        box, "mkdir -p /d/sub /e/old; echo 1 > /d/same; echo 1 > /d/file; echo 1 > /d/sub/gone; echo 1 > /e/old/x; ln -s a /link; touch /kind; echo 123 > /size"
    )
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "a"})
    assert changes(api, box, before="a") == {}
    api.run(
        box,
        "echo 2 > /d/file; rm -r /d/sub /e; mkdir /e; echo 1 > /e/new; ln -sf b /link; rm /kind; mkdir /kind; chmod 600 /size; touch /d/same; rm /etc/group",
    )
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "b"})
    expected = {
        "/d/file": ("changed", "file"),
        "/d/sub": ("removed", "directory"),
        "/d/sub/gone": ("removed", "file"),
        "/e/new": ("added", "file"),
        "/e/old": ("removed", "directory"),
        "/e/old/x": ("removed", "file"),
        "/etc/group": ("removed", "file"),
        "/kind": ("changed", "directory"),
        "/link": ("changed", "symlink"),
        "/size": ("changed", "file"),
    }
    assert changes(api, box, before="a", after="b") == expected == changes(api, box, before="a")
    swapped = {"added": "removed", "removed": "added", "changed": "changed"}
    back = {path: (swapped[change], "file" if path == "/kind" else kind) for path, (change, kind) in expected.items()}
    assert changes(api, box, before="b", after="a") == back
    since_image = changes(api, box)
    assert since_image["/d"] == ("added", "directory")
    assert since_image["/etc/group"] == ("removed", "file")
    api.ok("POST", f"/v1/sandboxes/{box}/stop")
    assert changes(api, box, before="a") == expected


def test_a_diff_has_the_lines_of_text_on_request(api: Api, box: str) -> None:
    api.run(box, r"printf 'one\ntwo\n' > /text; printf 'a\0b' > /binary; head -c 300000 /dev/zero | tr '\0' x > /large")
    api.ok("POST", f"/v1/sandboxes/{box}/checkpoints", status=201, json={"name": "a"})
    api.run(box, r"printf 'one\nthree\n' > /text; printf 'a\0c' > /binary; echo >> /large; printf 'new\n' > /new; printf x > $(printf '/\377')")
    found = api.ok("GET", f"/v1/sandboxes/{box}/diff", params={"before": "a", "text": True})["changes"]
    texts = {one["path"]: one["text"] for one in found}
    assert texts["/text"] == "--- a/text\n+++ b/text\n@@ -1,2 +1,2 @@\n one\n-two\n+three\n"
    assert texts["/new"].startswith("--- /dev/null\n+++ b/new\n")
    assert texts["/binary"] is texts["/large"] is None
    assert next(one["path_b64"] for one in found if one["path"] == "/\ufffd") == "L/8="
    cut = api.ok("GET", f"/v1/sandboxes/{box}/diff", params={"before": "a", "limit": 2})
    assert (len(cut["changes"]), cut["incomplete"]) == (2, True)


def test_a_diff_goes_through_a_chain_and_never_out_of_the_disk(api: Api, box: str) -> None:
    api.run(box, "mkdir /d; echo secret > /d/passwd; echo 1 > /only")
    first = snapshot(api, box)["id"]
    child = api.create(image=first)["id"]
    # A directory of one side is a link to the host's in the other, and what is in it has the names of the host's files.
    api.run(
        child,
        "rm -r /d /only; ln -s /etc /d; ln -s /etc/passwd /link; mkdir -p /deep; cd /deep; i=0; while [ $i -lt 60 ]; do mkdir $(printf %0200d 0); cd $(printf %0200d 0); i=$((i+1)); done; touch end",
    )
    found = api.ok("GET", f"/v1/sandboxes/{child}/diff", params={"text": True})
    assert {one["path"]: one["change"] for one in found["changes"] if not one["path"].startswith(("/deep", "/etc/host"))} == {
        "/d": "changed",
        "/d/passwd": "removed",
        "/link": "added",
        "/only": "removed",
    }
    assert found["incomplete"]
    assert "root:" not in str(found)
    api.delete(child)
    remove(api, first)


def test_a_fork_is_merged_back_and_nothing_is_overwritten_unasked(api: Api, box: str) -> None:
    api.run(box, "mkdir /w; echo base > /w/both; echo base > /w/theirs; echo base > /w/gone; echo base > /w/mine; ln -s both /w/link")
    base = snapshot(api, box)["id"]
    fork = api.create(image=base)["id"]
    api.run(
        fork,
        "echo fork > /w/theirs; chmod 640 /w/theirs; chown 1000:1000 /w/theirs; rm /w/gone; ln -sf mine /w/link; mkdir -p /w/new/deep; head -c 3000001 /dev/urandom > /w/new/deep/data; echo fork > /w/both; printf x > $(printf '/w/\\377')",
    )
    sums = api.run(fork, "sha256sum /w/new/deep/data")[0]
    api.run(box, "echo main > /w/mine; echo main > /w/both")
    theirs = snapshot(api, fork)["id"]
    expected = {"/w/theirs", "/w/gone", "/w/link", "/w/new", "/w/new/deep", "/w/new/deep/data", "/w/\ufffd"}
    told = api.ok("POST", f"/v1/sandboxes/{box}/merge", json={"snapshot": theirs, "dry_run": True})
    assert ({one["path"] for one in told["changes"]}, told["base"], told["checkpoint"]) == (expected, base, None)
    assert [(one["path"], one["theirs"], one["ours"]) for one in told["conflicts"]] == [("/w/both", "changed", "changed")]
    error = api.refused("conflict", "POST", f"/v1/sandboxes/{box}/merge", json={"snapshot": theirs})
    assert [one["path"] for one in error["details"]["conflicts"]] == ["/w/both"]
    assert api.run(box, "cat /w/theirs /w/gone")[0] == b"base\nbase\n"
    assert api.ok("GET", f"/v1/sandboxes/{box}/checkpoints")["checkpoints"] == []
    done = api.ok("POST", f"/v1/sandboxes/{box}/merge", json={"snapshot": theirs, "on_conflict": "keep"})
    assert {one["path"] for one in done["changes"]} == expected
    assert api.run(box, "cd /w; cat both mine theirs; stat -c '%a %u %g' theirs; readlink link; ls gone; sha256sum /w/new/deep/data; cat $(printf '/w/\\377')")[
        0
    ] == (b"main\nmain\nfork\n640 1000 1000\nmine\n" + sums + b"x")
    # Again there is nothing left but the conflict; taken, it is theirs.
    done = api.ok("POST", f"/v1/sandboxes/{box}/merge", json={"snapshot": theirs, "on_conflict": "take"})
    assert [one["path"] for one in done["changes"]] == ["/w/both"]
    assert api.run(box, "cat /w/both /w/mine; cat /etc/hostname")[0] == f"fork\nmain\n{box}\n".encode()
    api.ok("POST", f"/v1/sandboxes/{box}/rewind", json={"checkpoint": done["checkpoint"]})
    assert api.run(box, "cat /w/both")[0] == b"main\n"
    # One that stands on something else has no base with it.
    other = snapshot(api, fork)["id"]
    stranger = api.create(image=other)["id"]
    api.refused("invalid_argument", "POST", f"/v1/sandboxes/{stranger}/merge", json={"snapshot": base, "dry_run": True})
    for one in (fork, stranger):
        api.delete(one)
    remove(api, other, theirs, base)
