"""One browser and one server for every test of the page."""

from collections.abc import Iterator

import pytest

from tests.page_support import Open, Site, served_site
from tests.serving_support import FakeBackend


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    """Not for the whole session: while the browser is driven no other test could run an event loop of its own."""
    with served_site() as running:
        yield running


@pytest.fixture
def opened(site: Site) -> Iterator[Open]:
    yield site.open
    site.heal()


@pytest.fixture
def backend(site: Site) -> FakeBackend:
    return site.backend
