"""Training from an object store: shards on a real S3 server, which is often busy."""

import threading

import pytest
import werkzeug.serving

from tests.support.cli import run_cli
from training.run import Run

RECIPE = """
input_px = 64
backbone = "test_efficientnet"
weights = "none"
batch_size = 16
[[stages]]
photo_px = 48
epochs = 1
"""
BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class ObjectStore:
    """moto's server, which answers every fifth read of a photo with `503 SlowDown`."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._application = DomainDispatcherApplication(create_backend_app)
        self._server = werkzeug.serving.make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.num_reads = self.num_refusals = 0
        self._lock = threading.Lock()

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()

    def _answer(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "GET" and "HTTP_RANGE" in environ and ".tar" in environ["PATH_INFO"]:
            with self._lock:
                self.num_reads += 1
                is_busy = self.num_reads % 5 == 0
                self.num_refusals += is_busy
            if is_busy:
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [BUSY]
        return self._application(environ, start_response)


@pytest.fixture
def object_store(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with ObjectStore() as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


def test_shards_of_a_busy_store_lose_no_photo(object_store, synthetic_dataset, tmp_path):
    import s3fs

    s3fs.S3FileSystem().mkdir("listings")
    done = run_cli("data", "shard", synthetic_dataset / "manifest.parquet", "--output", "s3://listings/shards")
    assert done.returncode == 0, done.stderr
    (tmp_path / "recipe.toml").write_text(RECIPE)
    words = ["--recipe", tmp_path / "recipe.toml", "--run", tmp_path / "run", "--workers", "2"]
    done = run_cli("train", "s3://listings/shards/manifest.parquet", *words)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert [(epoch["bad_photos"], epoch["val_bad_photos"]) for epoch in run.metrics()] == [(0, 0)]
    assert object_store.num_refusals > 10
