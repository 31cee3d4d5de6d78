"""The version of this package, and of the API it speaks."""

__version__ = "0.1.0"
