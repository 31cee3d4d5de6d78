"""The tools of a coding agent, each one call: read, write, run. A script stands in for the model, so that it can be tried without one.

python examples/agent_tools.py
"""

from __future__ import annotations

from collections.abc import Callable

from corral import CorralError, Sandbox

FIRST_TRY = "def middle(values):\n    return sorted(values)[len(values) / 2]\n"
SECOND_TRY = "def middle(values):\n    return sorted(values)[len(values) // 2]\n"
TEST = "import unittest\nfrom middle import middle\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(middle([3, 1, 2]), 2)\n"

SCRIPT = [
    ("write", "middle.py", FIRST_TRY),
    ("write", "test_middle.py", TEST),
    ("run", "python3 -m unittest -q"),
    ("read", "middle.py"),
    ("write", "middle.py", SECOND_TRY),
    ("run", "python3 -m unittest -q"),
]


def tools(sandbox: Sandbox) -> dict[str, Callable[..., str]]:
    """What a model may call; each answers with text, also for its mistakes."""

    def run(command: str) -> str:
        result = sandbox.run(command, cwd="/tmp/project", timeout=60)
        return f"exit {result.exit_code}\n{result.stdout}{result.stderr}"

    def write(path: str, content: str) -> str:
        return f"{sandbox.files.write(f'/tmp/project/{path}', content).size} bytes written"

    def read(path: str) -> str:
        return sandbox.files.read_text(f"/tmp/project/{path}")

    return {"run": run, "write": write, "read": read}


def main() -> None:
    with Sandbox.create("base", tags={"example": "agent"}) as sandbox:
        known = tools(sandbox)
        for name, *arguments in SCRIPT:
            try:
                answer = known[name](*arguments)
            except CorralError as error:
                answer = f"error: {error}"
            print(f"→ {name} {arguments[0]}\n{answer.strip()}\n")


if __name__ == "__main__":
    main()
