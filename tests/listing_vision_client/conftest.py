import pytest

from tests.support.fake_service import FakeService


@pytest.fixture
def fake_service():
    """Starts services that do what a test says, on a real port."""
    return FakeService
