import pytest

OPTIONS = ("--in-process", "--workers", "2", "--status-port", "0")


@pytest.fixture
def served(bundle, start_serving, tmp_path):
    """A service with two gateway processes for one test."""
    return start_serving(bundle.folder, tmp_path / "serve.log", *OPTIONS)


@pytest.fixture(scope="module")
def shared(bundle, start_serving, tmp_path_factory):
    """A service with two gateway processes for tests that leave it serving."""
    served = start_serving(bundle.folder, tmp_path_factory.mktemp("shared") / "serve.log", *OPTIONS)
    yield served
    assert served.process.poll() is not None or served.stop() == 0
