"""A program inside that asks a web server for something, and says what came."""

from __future__ import annotations

import json

from corral import Sandbox

PROGRAM = """
import json, sys, urllib.request, urllib.error
try:
    with urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer placeholder"}), timeout=30) as answer:
        print(json.dumps([answer.status, answer.read().decode(), str(answer.headers)]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode(), ""]))
except OSError as error:
    print(json.dumps([0, str(error), ""]))
"""


def fetch(sandbox: Sandbox, url: str) -> tuple[int, str, str]:
    """Status (0: nobody answered), body (or why) and headers of the answer. The request has a placeholder for a token."""
    done = sandbox.run(["python3", "-c", PROGRAM, url], timeout=60)
    assert done.exit_code == 0, done.stderr
    status, body, headers = json.loads(done.stdout)
    return status, body, headers
