"""Photos are read from files, URLs and parts of tar shards; whatever is wrong is an OSError that names the place."""

import http.server
import threading

import fsspec
import pytest

from vision.photo_files import read_photo, read_photo_with_retries


@pytest.fixture(params=["path", "file", "memory"])
def shard(request, tmp_path):
    """URL of ten bytes, 0 to 9, as a shard."""
    if request.param == "memory":
        url = f"memory://{tmp_path.name}/s.tar"
        with fsspec.open(url, "wb") as file:
            file.write(bytes(range(10)))
        return url
    (tmp_path / "s.tar").write_bytes(bytes(range(10)))
    return str(tmp_path / "s.tar") if request.param == "path" else f"file://{tmp_path}/s.tar"


@pytest.mark.parametrize(("offset", "size"), [(0, 10), (3, 4), (9, 1), (10, 0), (0, 0)])
def test_a_photo_is_read_from_inside_a_shard(shard, offset, size):
    assert read_photo(f"{shard}#{offset}+{size}") == bytes(range(offset, offset + size))


@pytest.mark.parametrize("place", ["8+3", "10+1", "11+1", "0+99999999999999"])
def test_a_shard_cut_short_is_named(shard, place):
    with pytest.raises(OSError, match="copy it again") as caught:
        read_photo(f"{shard}#{place}")
    assert f"{shard}#{place}" in str(caught.value)


@pytest.mark.parametrize("place", ["", "3", "+", "-1+3", "1+2+3", "a+b", "1_0+2", "٣+1", "1+2 ", "1" * 40 + "+1"])
def test_a_place_that_is_none_is_named(shard, place):
    with pytest.raises(OSError, match=r"is not offset\+size") as caught:
        read_photo(f"{shard}#{place}")
    assert f"{shard}#{place}" in str(caught.value)


def test_missing_shards_and_photos_with_a_hash_sign(tmp_path):
    for url in (f"{tmp_path}/none.tar#0+1", f"memory://{tmp_path.name}/none.tar#0+1"):
        with pytest.raises(FileNotFoundError):
            read_photo(url)
    (tmp_path / "photo #1+2.jpg").write_bytes(b"x")
    assert read_photo(str(tmp_path / "photo #1+2.jpg")) == b"x"


@pytest.fixture
def http_store():
    """A function that starts an HTTP server of these statuses, the last one repeated; it returns a photo's URL, and a
    list that grows by each path that is read."""
    servers = []

    def start(*statuses):
        paths = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                paths.append(self.path)
                self.send_response(statuses[min(len(paths), len(statuses)) - 1])
                self.send_header("Content-Length", "1")
                self.end_headers()
                self.wfile.write(b"7")

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/7.jpg", paths

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_store_that_is_busy_for_a_moment_is_asked_again(http_store, status):
    url, paths = http_store(status, status, 200)
    assert read_photo_with_retries(url, initial_backoff_s=0.001) == b"7"
    assert len(paths) == 3


@pytest.mark.parametrize(("status", "kind"), [(403, PermissionError), (404, FileNotFoundError)])
def test_what_stays_as_it_is_is_asked_once(http_store, status, kind):
    url, paths = http_store(status)
    with pytest.raises(kind):
        read_photo_with_retries(url)
    assert len(paths) == 1


@pytest.mark.parametrize("url", ["{folder}/s.tar#8+3", "{folder}/s.tar#x", "lakefs://a/b.jpg"])
def test_a_wrong_place_is_not_tried_again(tmp_path, monkeypatch, url):
    (tmp_path / "s.tar").write_bytes(bytes(range(10)))
    monkeypatch.setattr("tenacity.Retrying", None)
    with pytest.raises(OSError, match=r"s\.tar|lakefs"):
        read_photo_with_retries(url.format(folder=tmp_path))
