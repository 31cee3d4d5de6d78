"""Give a program a network that reaches two hosts, with a token it never sees; and watch what it tries.

python examples/egress.py
"""

import uuid

from corral import Egress, Sandbox, Secret
from corral.errors import Unsupported

PROGRAM = """
import os, socket
print("token inside:", os.environ.get("TOKEN"))
for host in ("api.example.com", "elsewhere.example.net"):
    try:
        socket.create_connection((host, 443), timeout=5).close()
        print(host, "reached")
    except OSError as error:
        print(host, "refused:", type(error).__name__)
"""


def main() -> None:
    name = f"TOKEN_{uuid.uuid4().hex[:8]}"
    Secret.create(name, "not for the guest")
    egress = (
        Egress.allow("files.example.com", ports=443)
        .rule("api.example.com", inject={"Authorization": f"Bearer {{{{{name}}}}}"}, name="the API")
        .deny("*.example.net", name="elsewhere")
        .budget(connections=16)
    )
    try:
        with Sandbox.create("base", egress=egress) as sandbox:
            print(sandbox.run(["python3", "-c", PROGRAM], timeout=60).stdout)
            for denial in sandbox.egress.denials():
                print(f"denied: {denial.name or denial.address} by {denial.rule}: {denial.reason}")
            sandbox.egress.set("none")
            print("closed:", sandbox.egress.get())
    except Unsupported as error:
        print(f"no network for sandboxes here: {error}")
    finally:
        Secret.delete(name)
        print("the token is forgotten")


if __name__ == "__main__":
    main()
