"""Errors that may be temporary are retried, others reported at once."""

import threading

import pytest

from serving.backfill.output import Failure
from serving.backfill.photo_reader import PhotoReader


@pytest.fixture
def attempts(monkeypatch):
    """Have reads raise the errors of a list, one each, and then succeed; return the URLs that were read."""

    def prepare(*errors):
        urls, left = [], list(errors)

        def read(url):
            urls.append(url)
            if left:
                raise left.pop(0)
            return b"7"

        monkeypatch.setattr("serving.backfill.photo_reader.read_photo", read)
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
    assert create_reader(max_attempts=4).read("7") == Failure(reason="PHOTO_READ_FAILED", message="reset by peer")
    assert len(urls) == 1 + 4


@pytest.mark.parametrize(
    ("error", "reason", "num_attempts"),
    [(FileNotFoundError("gone"), "PHOTO_NOT_FOUND", 1), (PermissionError("denied"), "PHOTO_READ_FAILED", 2)],
)
def test_an_error_that_stays_is_not_retried(attempts, error, reason, num_attempts):
    urls = attempts(*[error] * 100)
    assert create_reader().read("7") == Failure(reason=reason, message=str(error))
    assert len(urls) == num_attempts


def test_nothing_is_retried_after_a_stop(attempts):
    stop = threading.Event()
    stop.set()
    urls = attempts(*[TimeoutError("slow down")] * 100)
    assert create_reader(stop).read("7") == Failure(reason="PHOTO_READ_FAILED", message="slow down")
    assert len(urls) == 2
