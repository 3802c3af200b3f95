import contextlib

import pytest

from tests.support.identity_provider import IdentityProvider, create_jwk


@pytest.fixture
def provider():
    started = IdentityProvider(create_jwk("ES256", "key-1"))
    yield started
    with contextlib.suppress(OSError):
        started.stop()
