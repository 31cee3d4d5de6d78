"""The way in: requests from outside to ports of sandboxes, in a process of their own. `process.py` is that process, `keeper.py` the server's end of it."""
