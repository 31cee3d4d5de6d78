"""Images through the SDK: built from steps and Dockerfiles, kept by content, named by templates."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from corral import Client, Image, Sandbox, aio
from corral.errors import BuildFailed, Conflict, ImageNotFound, InvalidArgument
from corral.schema.image import BuildLog
from harness.server import Server


def said(image: Image, *, force: bool = False) -> list[tuple[str, str]]:
    """What a build says."""
    lines: list[BuildLog] = []
    image.build(on_log=lines.append, force=force)
    return [(line.stream, line.text) for line in lines]


def done(image: Image) -> int:
    """How many steps a build has to do."""
    return sum(stream == "step" for stream, _ in said(image))


@pytest.fixture
def word(server: Server) -> str:
    """Nobody has built anything with it."""
    return uuid.uuid4().hex


def test_steps_are_kept_by_content(word: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text(word)
    (tmp_path / "left.pyc").write_text("x")
    image = Image.named("tiny").run(f"echo {word} > /one; echo loud").copy(tmp_path, "/data", ignore=["*.pyc"]).env(A="1").workdir("/w")
    last = image.run("cat /one /data/kept > two; pwd")
    lines = said(last)
    assert ("stdout", "loud\n") in lines
    assert sum(stream == "step" for stream, _ in lines) == 3
    assert done(last) == 0
    assert done(image.run("cat /one /data/kept > three")) == 1
    (tmp_path / "kept").touch()
    (tmp_path / "left.pyc").write_text("y")
    assert done(last) == 0
    (tmp_path / "kept").write_text("other")
    assert done(last) == 2
    with Sandbox.create(last) as box:
        assert box.run("cat two; pwd; echo $A; ls /data").stdout == f"{word}\nother/w\n1\nkept\n"


def test_a_step_that_fails_says_what_it_was(word: str) -> None:
    good = Image.named("tiny").run(f"echo {word}")
    with pytest.raises(BuildFailed, match=r"step 2: run echo why.*ended with 3(.|\n)*above it: run echo(.|\n)*why") as failed:
        good.run("echo why; exit 3").build()
    assert failed.value.details["exit_code"] == 3
    assert done(good) == 0


def test_two_builds_at_once_do_it_once(word: str) -> None:
    image = Image.named("tiny").run(f"sleep 1; echo {word}")
    logs: list[list[tuple[str, str]]] = [[], []]

    def build(number: int, of: Image) -> None:
        logs[number] = said(of)

    threads = [threading.Thread(target=build, args=(number, image.run(f"echo {number}"))) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran = [text for lines in logs for stream, text in lines if stream == "step" and word in text]
    assert len(ran) == 1


def test_a_dockerfile(word: str, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.txt").write_text("a\n")
    (tmp_path / "src" / "b.log").write_text("b\n")
    (tmp_path / ".dockerignore").write_text("**/*.log\n")
    (tmp_path / "Dockerfile").write_text(f"""\
ARG BASE=corral/tiny
FROM $BASE AS one
RUN --mount=type=cache,target=/cache,id=c{word[:8]} echo {word} >> /cache/log; wc -l < /cache/log > /count
RUN <<END
echo from a document > /doc
END
FROM $BASE AS unused
RUN exit 1
FROM $BASE
ARG NAME
COPY --from=one /count /doc /got/
COPY --chown=7:8 --chmod=640 src /src
COPY <<hello.txt /inline/
hello $NAME
hello.txt
WORKDIR /app
ENV WHO=$NAME
RUN --mount=type=bind,source=src,target=/mnt/src ls /mnt/src > listing
CMD ["sh", "-c", "echo $WHO"]
""")
    image = Image.from_dockerfile(tmp_path / "Dockerfile", args={"NAME": word})
    assert image.build().command == ["sh", "-c", "echo $WHO"]
    with Sandbox.create(image) as box:
        assert box.run("cat /got/count /got/doc /inline/hello.txt listing; echo $WHO; ls /mnt").stdout == f"1\nfrom a document\nhello {word}\na.txt\n{word}\n"
        assert box.run("stat -c '%a %u:%g' /src/a.txt; ls /src").stdout == "640 7:8\na.txt\n"
    with pytest.raises(InvalidArgument, match="line 2"):
        (tmp_path / "Dockerfile").write_text("FROM corral/tiny\nFORM x\n")
        Image.from_dockerfile(tmp_path / "Dockerfile").build()


def test_templates_start_what_their_image_says(server: Server, word: str) -> None:
    name = f"t-{word[:8]}"
    image = Image.named("tiny").run(f"echo {word} > /word").start("sleep 1; touch /ready; exec sleep 1000", ready={"file": "/ready"})
    with Client() as client:
        built = image.build(template=name, tag="v1")
        client.templates.set(name, built)
        assert client.templates.get(name).tags == {"latest": built.id, "v1": built.id}
        with client.sandboxes.create(f"{name}:v1") as box:
            assert box.files.exists("/ready")
            assert client.templates.get(name).sandboxes == [box.id]
            with pytest.raises(Conflict):
                client.images.delete(built.id)
        client.templates.delete(name)
        client.images.delete(built.id)
        with pytest.raises(ImageNotFound):
            client.sandboxes.create(name)


def test_files_of_this_machine_are_given_at_the_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("1")
    image = Image.named("tiny").add_local_dir(tmp_path, "/app")
    with Sandbox.create(image) as box:
        assert box.files.read_text("/app/app.py") == "1"
    (tmp_path / "app.py").write_text("2")
    assert done(image) == 0
    with Sandbox.create(image) as box:
        assert box.files.read_text("/app/app.py") == "2"


async def test_with_await(server: Server, word: str) -> None:
    async with await aio.Sandbox.create(aio.Image.named("tiny").run(f"echo {word} > /word")) as box:
        assert await box.files.read_text("/word") == f"{word}\n"
