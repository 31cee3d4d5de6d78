"""What E2B's clients find at port 49983 of a sandbox: processes and file systems by Connect-RPC, files by plain HTTP. Answered outside the sandbox."""

VERSION = "0.6.13"
"""What the clients go by when they ask whether something is supported. Everything up to this version is."""
PORT = 49983
