"""The command line explains itself quickly and refuses wrong words in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = [
    "up",
    "down",
    "run",
    "create",
    "exec",
    "shell",
    "cp",
    "ls",
    "ps",
    "logs",
    "inspect",
    "events",
    "rm",
    "stop",
    "start",
    "fork",
    "pause",
    "resume",
    "extend",
    "setup",
    "doctor",
    "quickstart",
    "bench",
    "test",
    "image",
    "key",
    "project",
    "secret",
    "egress",
    "approvals",
    "approve",
    "preview",
    "port-forward",
    "hold",
    "trust",
]


def corral(*words: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CORRAL_")}
    settings = {**clean, "HOME": str(tmp_path), "CORRAL_HOME": str(tmp_path), "CORRAL_URL": "http://127.0.0.1:9", **env}
    return subprocess.run([sys.executable, "-m", "corral", *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=settings)


@pytest.mark.parametrize("command", ["", *COMMANDS, "image ls", "key create", "project rm", "secret create"])
def test_help_is_there_and_loads_no_heavy_module(command: str, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from corral.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = [name for name in ('pydantic', 'httpcore2', 'asyncio', 'rich', 'fastapi') if name in sys.modules]\n"
        "sys.exit(f'loads {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: corral"), done.stdout
    text = done.stdout.splitlines()
    assert len(text) > 3
    assert text[2].strip(), "a command without a sentence about it"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rum"], "No such command 'rum'"),
        (["ls", "--nonsense"], "No such option"),
        (["create", "--cpu", "many"], "--cpu"),
        (["create", "--env", "=x"], "KEY=VALUE"),
        (["rm"], "--all"),
        (["rm", "x", "--all"], "--all"),
        (["cp", "a", "b"], "SANDBOX:PATH"),
        (["run", "-t", "--", "sh"], "terminal"),
        (["exec", "x", "--json", "--", "sh"], "--detach"),
        (["bench", "nonsense"], "nonsense"),
        (["run", "--egress", "everything", "--", "true"], "allow:HOST"),
        (["create", "--egress", "allow:,"], "no host"),
        (["create", "--egress", "@/etc/passwd"], "not JSON"),
        (["egress", "set", "x", "every"], "allow:HOST"),
    ],
)
def test_wrong_words_get_one_line_and_exit_code_2(words: list[str], message: str, tmp_path: Path) -> None:
    done = corral(*words, tmp_path=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("corral: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_without_a_server_one_sentence_says_how_to_start_one(tmp_path: Path) -> None:
    done = corral("ls", tmp_path=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "corral: no Corral server answers at http://127.0.0.1:9 (start one with `corral up --detach`, or set CORRAL_URL)\n"


def test_a_wrong_argument_is_told_without_asking_the_server(tmp_path: Path) -> None:
    done = corral("create", "--memory", "1", tmp_path=tmp_path)
    assert (done.returncode, done.stderr) == (1, "corral: memory: Input should be greater than or equal to 64\n")


def test_the_version_is_told(tmp_path: Path) -> None:
    from corral.version import __version__

    assert corral("--version", tmp_path=tmp_path).stdout == __version__ + "\n"
