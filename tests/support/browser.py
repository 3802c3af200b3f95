"""Debian's Chromium under Playwright, for the tests of the page and its screenshot."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["find_chromium", "open_browser"]


def find_chromium() -> str | None:
    """Path of a Chromium on this machine."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def open_browser() -> Iterator[Any]:
    """A running browser, of which pages can be opened."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()
