"""The code interpreter through the SDK and the command line, with the real kernels of its image."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from corral import CommandFailed, Sandbox, images
from corral.errors import InvalidArgument, NotFound, Unsupported
from corral.places import Places
from corral.schema.code import Status
from harness.server import Server

pytestmark = pytest.mark.timeout(900)  # the first run makes the image

PLOT = """
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 5, 6], label="line")
plt.title("Growth")
plt.xlabel("time")
plt.show()
"""


@pytest.fixture(scope="module")
def interpreter(server: Server, shared: Places) -> str:
    """The image, which the first run on a machine makes."""
    images.ensure(shared, ["code-interpreter"], on_line=print)
    images.share(Places(server.home), shared, ["code-interpreter"])
    return "code-interpreter"


@pytest.fixture(scope="module")
def box(interpreter: str) -> Iterator[Sandbox]:
    with Sandbox.create(interpreter, cpu=2, memory=1024) as box:
        yield box


def test_variables_stay_and_values_come_back(box: Sandbox) -> None:
    assert box.code("x = 20").results == []
    execution = box.code.run("x + 1")
    assert (execution.text, execution.status, execution.ok) == ("21", Status.OK, True)
    assert (execution.count or 0) >= 2
    assert box.code("'text'").text == "'text'"
    assert box.code("import os; os.getcwd()").text == "'/home/user'"


def test_text_comes_as_it_is_said_by_whomever(box: Sandbox) -> None:
    out: list[str] = []
    err: list[str] = []
    code = "import os, sys\nprint('one')\nos.system('echo two')\nprint('three', file=sys.stderr)"
    execution = box.code(code, on_stdout=out.append, on_stderr=err.append)
    assert (execution.stdout, execution.stderr) == ("one\ntwo\n", "three\n") == ("".join(out), "".join(err))


def test_no_word_of_a_child_comes_after_the_end(box: Sandbox) -> None:
    code = """import multiprocessing, subprocess, sys
subprocess.run(['echo', 'spawned'])
!echo terminal
child = multiprocessing.get_context('fork').Process(target=lambda: print('forked'))
child.start(); child.join()
print('last')"""
    for _ in range(8):
        assert box.code(code).stdout.split() == ["spawned", "terminal", "forked", "last"]
    assert box.code("import os\nfor _ in range(9): os.system(\"printf 'k\\\\303'; printf '\\\\244se '\")").stdout == "k\u00e4se " * 9


def test_an_error_is_a_result(box: Sandbox) -> None:
    execution = box.code("def f():\n    return 1 / 0\nf()")
    assert execution.status is Status.ERROR
    assert execution.error is not None
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert any("return" in line for line in execution.error.traceback)
    with pytest.raises(CommandFailed, match="ZeroDivisionError"):
        execution.check()


def test_tables_and_charts_come_as_data(box: Sandbox) -> None:
    table = box.code(
        "import pandas as pd; pd.DataFrame({'n': [1, 2], 'word': ['a', None], 'at': [pd.Timestamp('2026-01-02'), pd.NaT], 'f': [0.5, float('inf')]})"
    ).value
    assert table is not None
    assert table.html is not None
    assert table.html.startswith("<div>")
    assert table.data == {"n": [1, 2], "word": ["a", None], "at": ["2026-01-02T00:00:00", None], "f": [0.5, None]}
    (figure,) = box.code(PLOT).results
    assert not figure.main
    assert figure.png is not None
    assert figure.png.startswith(b"\x89PNG")
    assert figure.chart is not None
    assert (figure.chart["type"], figure.chart["title"], figure.chart["x_label"]) == ("line", "Growth", "time")
    assert figure.chart["elements"] == [{"label": "line", "points": [[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]]}]


def test_every_form_of_a_value_comes(box: Sandbox) -> None:
    forms = {
        "text/html": "<b>x</b>",
        "text/markdown": "*x*",
        "text/latex": "$x$",
        "image/svg+xml": "<svg/>",
        "application/javascript": "x()",
        "application/json": {"x": [1, None, "\u20ac"]},
        "application/pdf": "JVBERg==",
        "application/x-mine": "mine",
    }
    (value,) = box.code(f"from IPython.display import display\ndisplay({forms!r}, raw=True)").results
    assert value.mime == forms
    assert (value.html, value.markdown, value.latex, value.svg, value.javascript) == ("<b>x</b>", "*x*", "$x$", "<svg/>", "x()")
    assert (value.json, value.pdf) == ({"x": [1, None, "\u20ac"]}, b"%PDF")


def test_the_environment_of_one_execution_is_that_ones(box: Sandbox) -> None:
    for language, show in (
        ("python", "import os; print(os.environ.get('MINE', ''))"),
        ("bash", "echo $MINE"),
        ("javascript", "console.log(Deno.env.get('MINE') ?? '')"),
    ):
        assert box.code(show, language=language, env={"MINE": 'it\'s "one" $HOME'}).stdout == 'it\'s "one" $HOME\n', language
        assert box.code(show, language=language).stdout == "\n", language
    with pytest.raises(InvalidArgument):
        box.code("1", env={"not a name": "x"})


def test_other_languages(box: Sandbox) -> None:
    box.code("const a = 1; let b: number = 2", language="typescript")
    assert box.code("a + b", language="typescript").text == "3"
    assert box.code("await Promise.resolve([1, 2].length)", language="javascript").text == "2"
    assert (error := box.code("throw new TypeError('no')", language="javascript").error) is not None
    assert (error.name, error.value) == ("TypeError", "no")
    box.code("WORD=kept; cd /tmp", language="bash")
    assert box.code("echo $WORD $PWD", language="bash").stdout == "kept /tmp\n"
    assert box.code("ls /nowhere", language="bash").status is Status.ERROR
    with pytest.raises(Unsupported, match="no Jupyter kernel for cobol"):
        box.code("1", language="cobol")


def test_what_runs_too_long_is_interrupted_and_loses_nothing(box: Sandbox) -> None:
    box.code("kept = 1")
    with pytest.raises(TimeoutError) as caught:
        box.code("print('begun')\nwhile True: pass", timeout=0.5)
    partial = caught.value.partial  # pyright: ignore[reportAttributeAccessIssue]
    assert (partial.stdout, partial.error.name) == ("begun\n", "KeyboardInterrupt")
    assert box.code("kept").text == "1"


def test_contexts_are_apart(box: Sandbox) -> None:
    box.files.mkdir("/tmp/there")
    one, two = box.code.create_context(cwd="/tmp/there"), box.code.create_context()
    assert (one.language, one.cwd, one.default, two.cwd) == ("python", "/tmp/there", False, "/home/user")
    box.code("x = 'one'", context=one)
    assert box.code("import os; x, os.getcwd()", context=one).text == "('one', '/tmp/there')"
    assert (error := box.code("x_of_nobody", context=two.id).error) is not None
    assert error.name == "NameError"
    assert {one.id, two.id} <= {context.id for context in box.code.contexts()}
    assert [context.language for context in box.code.contexts() if context.default][:1] == ["python"]
    with pytest.raises(InvalidArgument, match="either a context or a language"):
        box.code("1", context=one, language="python")

    running = threading.Event()
    ended: list[Status] = []

    def wait() -> None:
        ended.append(box.code("print('runs', flush=True)\nimport time\ntime.sleep(600)", context=two, on_stdout=lambda _: running.set()).status)

    thread = threading.Thread(target=wait)
    thread.start()
    assert running.wait(60)
    box.code.interrupt(two)
    thread.join(60)
    box.code.restart(one)
    assert (error := box.code("x", context=one).error) is not None
    assert error.name == "NameError"
    for context in (one, two):
        box.code.remove(context)
    assert ended == [Status.INTERRUPTED]
    with pytest.raises(NotFound):
        box.code("1", context=one)


def test_a_kernel_that_dies_is_told_of_and_replaced(box: Sandbox) -> None:
    context = box.code.create_context()
    execution = box.code("x = 1\nimport os, time\nprint('last words', flush=True)\ntime.sleep(0.5)\nos._exit(3)", context=context)
    assert (execution.status, execution.stdout) == (Status.DIED, "last words\n")
    assert execution.error is not None
    assert "ended with 3" in execution.error.value
    assert box.code("1 + 1", context=context).text == "2"
    box.code.remove(context)


def test_the_command_line(box: Sandbox, server: Server) -> None:
    def corral(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "corral", "code", box.id, *words], env=server.env, input=stdin, capture_output=True, text=True, timeout=60, check=False
        )

    assert corral("y = 5\nprint('said')\ny * 2").stdout == "said\n10\n"
    failed = corral(stdin="y / 0")
    assert (failed.returncode, "ZeroDivisionError" in failed.stderr) == (1, True)


def test_an_image_without_python_says_so(server: Server) -> None:
    with Sandbox.create("tiny") as box, pytest.raises(Unsupported, match="no python3"):
        box.code("1")
