"""What several of these tests stand on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from corral.store import Store


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(f"sqlite:///{tmp_path}/corral.db")
    store.open()
    yield store
    await store.close()
