"""The client. `_async/` is written by hand; `_sync/` is made from it by `scripts/async_to_sync.py`; what does no I/O is shared and stands beside them.

Import `corral` (blocking) or `corral.aio` (with await) rather than this package.
"""
