"""The code interpreter: Jupyter kernels in sandboxes, each kept by a small program of ours, spoken to through that process' standard streams.

    api/code.py ──► contexts.py ──► lines.py                          JSON lines, typed and bounded
                        └──► ProcessBook ──► agent ──► guest/driver.py ──► the kernel (guest/kernel.py for Python)

A context *is* a process: what it says is kept in the spool like any output, so that it survives this server, and a slow reader costs nothing but disk.
"""
