"""Run a piece of code nobody has read: limited in time, memory, disk and processes, without a network, and gone afterwards.

python examples/untrusted_code.py
"""

from corral import DeadlineExceeded, Sandbox

SNIPPETS = {
    "honest": "print(sum(range(10**6)))",
    "curious": "import os; print(sorted(os.listdir('/')), os.getuid())",
    "calls home": "import socket; socket.create_connection(('192.0.2.1', 80), timeout=2)",
    "endless": "while True: pass",
    "broken": "print(undefined)",
}


def main() -> None:
    with Sandbox.create("base", cpu=1, memory=512, disk=256, pids=64, timeout=300, egress="none") as sandbox:
        for name, code in SNIPPETS.items():
            try:
                result = sandbox.run(["python3", "-c", code], timeout=5)
            except DeadlineExceeded as late:
                print(f"{name}: killed after 5 s, it had said {late.partial.stdout!r}")
                continue
            last = (result.stdout or result.stderr).strip().splitlines()[-1]
            print(f"{name}: exit {result.exit_code}, {last}")


if __name__ == "__main__":
    main()
