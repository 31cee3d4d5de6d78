"""The client with await. The blocking twin in `_sync/` is generated from this folder."""
