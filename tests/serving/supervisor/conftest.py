import pytest


@pytest.fixture
def served(bundle, start_serving, tmp_path):
    return start_serving(bundle.folder, tmp_path / "serve.log", "--in-process", "--workers", "2", "--status-port", "0")
