"""SSH into sandboxes, in a process of its own that is started when the first client comes. `process.py` is that process, `keeper.py` the server's end of it."""
