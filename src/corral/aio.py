"""The names of `corral` with await.

from corral.aio import Sandbox

async with await Sandbox.create() as sb:
    print((await sb.run("echo hello")).stdout)
"""

from corral.errors import CommandFailed, CorralError, DeadlineExceeded
from corral.sdk._async.client import Client
from corral.sdk._async.files import Files
from corral.sdk._async.image import Image
from corral.sdk._async.process import Process
from corral.sdk._async.sandbox import Sandbox
from corral.sdk._async.secret import Secret
from corral.sdk._async.snapshot import Snapshot
from corral.sdk._async.volume import Volume
from corral.sdk.egress import Egress
from corral.sdk.result import Result

__all__ = [
    "Client",
    "CommandFailed",
    "CorralError",
    "DeadlineExceeded",
    "Egress",
    "Files",
    "Image",
    "Process",
    "Result",
    "Sandbox",
    "Secret",
    "Snapshot",
    "Volume",
]
