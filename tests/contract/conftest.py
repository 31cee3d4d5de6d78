"""What several of these tests stand on."""

from collections.abc import Iterator

import pytest

from harness.api import Api
from harness.previewed import Site, serve
from harness.server import Server


@pytest.fixture(scope="module")
def admin(server: Server) -> Iterator[Api]:
    api = Api(server)
    yield api
    api.close()


@pytest.fixture(scope="module")
def site(admin: Api) -> Iterator[Site]:
    made = serve(admin)
    yield made
    admin.delete(made.id)
