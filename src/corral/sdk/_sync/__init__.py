# Generated from sdk/_async/__init__.py by scripts/async_to_sync.py: edit that, not this.
"""The blocking client."""
