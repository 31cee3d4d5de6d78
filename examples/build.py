"""Send a directory in, build it with the output shown as it comes, get the result back. The build outlives this program: run it with a
sandbox's and a process' id to follow one that was left.

    python examples/build.py
    python examples/build.py sb-… pr-…
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from corral import Process, Sandbox

MAKEFILE = "hello: hello.c\n\tcc -O2 -static -o $@ $<\n\t./hello\n"
SOURCE = '#include <stdio.h>\nint main(void) { puts("built in a sandbox"); return 0; }\n'


def follow(process: Process[str]) -> int:
    for line in process.stdout:
        print("  " + line, end="")
    code = process.wait()
    print(process.stderr.read(), end="", file=sys.stderr)
    return code


def build(work: Path) -> int:
    project = work / "project"
    project.mkdir()
    (project / "Makefile").write_text(MAKEFILE)
    (project / "hello.c").write_text(SOURCE)
    with Sandbox.create("base", cpu=2, memory=1024) as sandbox:
        sandbox.files.upload(project, "/tmp/project")
        process = sandbox.exec("make", "-C", "/tmp/project", stdin=False)
        print(f"building; to follow it from elsewhere: {sys.argv[0]} {sandbox.id} {process.id}")
        if code := follow(process):
            return code
        sandbox.files.download("/tmp/project/hello", work / "hello")
    print(f"{(work / 'hello').stat().st_size} bytes came back")
    return 0


def main(words: list[str]) -> int:
    if len(words) == 2:
        return follow(Sandbox.get(words[0]).process(words[1]))
    with tempfile.TemporaryDirectory() as work:
        return build(Path(work))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
