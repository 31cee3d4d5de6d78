"""`corral quickstart`: from a machine without anything to a real project's tests run in a sandbox, with what each step took."""

from corral.quickstart.tour import quickstart

__all__ = ["quickstart"]
