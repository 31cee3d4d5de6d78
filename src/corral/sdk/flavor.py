"""Which of the two clients a line belongs to: `scripts/async_to_sync.py` keeps one branch of `if ASYNC`."""

from __future__ import annotations

from typing import Final

ASYNC: Final = True
