"""Errors that may be temporary are retried, others reported at once."""

import http.server
import threading

import pytest

from vision.feeders.photo_reader import PhotoFailure, PhotoReader


@pytest.fixture
def attempts(monkeypatch):
    """Have reads raise the errors of a list, one each, and then succeed; return the URLs that were read."""

    def prepare(*errors):
        urls, left = [], list(errors)

        def read(url, *, timeout_s):
            urls.append(url)
            if left:
                raise left.pop(0)
            return b"7"

        monkeypatch.setattr("vision.photo_files.read_photo", read)
        return urls

    return prepare


def create_reader(stop=None, **options):
    return PhotoReader("base", stop=stop or threading.Event(), initial_backoff_s=0.001, **options)


def test_an_error_that_may_be_temporary_is_retried(attempts):
    urls = attempts(TimeoutError("slow down"), ConnectionError("reset by peer"))
    assert create_reader().read("7.jpg") == b"7"
    assert urls == ["base/7.jpg"] * 3


def test_retries_are_limited(attempts):
    urls = attempts(*[ConnectionError("reset by peer")] * 100)
    assert create_reader(max_attempts=4).read("7") == PhotoFailure(reason="PHOTO_READ_FAILED", message="reset by peer")
    assert len(urls) == 4
    urls = attempts(*[ConnectionError("reset by peer")] * 100)
    create_reader().read("7")
    assert len(urls) == 5


@pytest.mark.parametrize(
    ("error", "reason"),
    [(FileNotFoundError("gone"), "PHOTO_NOT_FOUND"), (PermissionError("denied"), "PHOTO_READ_FAILED")],
)
def test_an_error_that_stays_is_not_retried(attempts, error, reason):
    urls = attempts(*[error] * 100)
    assert create_reader().read("7") == PhotoFailure(reason=reason, message=str(error))
    assert len(urls) == 1


def test_nothing_is_retried_after_a_stop(attempts):
    stop = threading.Event()
    stop.set()
    urls = attempts(*[TimeoutError("slow down")] * 100)
    assert create_reader(stop).read("7") == PhotoFailure(reason="PHOTO_READ_FAILED", message="slow down")
    assert len(urls) == 1


@pytest.fixture
def host():
    """A server on loopback that answers each path with the status in it, and never where that is 0."""
    requests = []
    done = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            if self.path == "/0":
                done.wait(60)
                return
            self.send_response(int(self.path[1:]))
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"7")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        done.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "reason", "num_attempts"),
    [
        (401, "PHOTO_READ_FAILED", 1),
        (403, "PHOTO_READ_FAILED", 1),
        (404, "PHOTO_NOT_FOUND", 1),
        (410, "PHOTO_NOT_FOUND", 1),
        (429, "PHOTO_READ_FAILED", 5),
        (503, "PHOTO_READ_FAILED", 5),
    ],
)
def test_a_host_is_asked_again_only_where_that_may_help(host, status, reason, num_attempts):
    url, requests = host
    found = create_reader().read(f"{url}/{status}")
    assert isinstance(found, PhotoFailure)
    assert found.reason == reason
    assert len(requests) == num_attempts
    assert create_reader().read(f"{url}/200") == b"7"


def test_a_host_that_never_answers_is_given_up(host):
    url, requests = host
    found = create_reader(timeout_s=0.3).read(f"{url}/0")
    assert found == PhotoFailure(
        reason="PHOTO_READ_FAILED", message=f"{url}/0: the server has not answered within 0.3 s"
    )
    assert requests == ["/0"]
