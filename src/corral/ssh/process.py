"""The process that speaks SSH: encryption and bytes apart from the server, which they would stall. What is asked for it does by the API, as whoever has logged in.

`python -I -m corral.ssh.process --listener FD --socket PATH --host-key PATH --api URL …`. It ends by itself when nobody has been there for a while; the server starts another for the next client.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
from pathlib import Path

import asyncssh
import uvloop

from corral.ssh.visitor import Visitor, Visitors

IDLE_SECONDS = 600.0
"""Without a connection for so long, the process ends."""
LOGIN_SECONDS = 60.0
KEEPALIVE_SECONDS = 30.0
"""So often a silent client is asked whether it is there; after three times without an answer it is not."""


async def serve(listener: socket.socket, visitors: Visitors, key: Path) -> None:
    """Until nobody has been there for long, or SIGTERM comes."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    def visitor() -> Visitor:
        return Visitor(visitors)

    acceptor = await asyncssh.listen(
        sock=listener,
        server_factory=visitor,
        server_host_keys=[str(key)],
        encoding=None,
        line_editor=False,
        agent_forwarding=False,
        x11_forwarding=False,
        compression_algs=None,
        login_timeout=LOGIN_SECONDS,
        keepalive_interval=KEEPALIVE_SECONDS,
        server_version="Corral",
        # No configuration of the machine's own SSH is meant for us.
        config=(),
    )
    async with acceptor:
        while not stopped.is_set() and not visitors.absent_for(IDLE_SECONDS):
            try:
                async with asyncio.timeout(IDLE_SECONDS / 10):
                    await stopped.wait()
            except TimeoutError:
                pass


def main() -> None:
    parser = argparse.ArgumentParser(prog="corral.ssh.process")
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--host", required=True, help="where the listener listens; told so that a server can see what it has started")
    parser.add_argument("--listener", type=int, required=True, help="descriptor that listens already")
    parser.add_argument("--socket", type=Path, required=True, help="where the server answers who may come in")
    parser.add_argument("--host-key", type=Path, required=True)
    parser.add_argument("--api", required=True, help="the server's URL")
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format='{"at": "%(asctime)s", "level": "%(levelname)s", "event": "%(message)s"}')
    # Nothing that was imported is garbage ever.
    gc.freeze()
    uvloop.run(serve(socket.socket(fileno=given.listener), Visitors(given.socket, given.api), given.host_key))


if __name__ == "__main__":
    main()
