"""Debian's Chromium under Playwright, for the tests of pages and for their screenshots."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["find_chromium", "find_violations", "find_violations_by_width", "open_browser"]


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


def find_violations_by_width(page: Any, widths: Sequence[int], *, height: int) -> dict[int, list[str]]:
    """What axe-core finds wrong with a page at each width in CSS pixels, and where it is wider than its window."""
    found = {}
    for width in widths:
        page.set_viewport_size({"width": width, "height": height})
        found[width] = find_violations(page)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found[width].append("wider than its window")
    return found


def find_violations(page: Any, *, without_rules: Sequence[str] = ()) -> list[str]:
    """What axe-core finds wrong with a page as it is: the rule and the elements of each violation."""
    from axe_playwright_python.sync_playwright import Axe

    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    rules = {rule: {"enabled": False} for rule in without_rules}
    options = {"resultTypes": ["violations"], "rules": rules}
    # Its whole report takes longer to read than to write.
    found = page.evaluate("(options) => axe.run(options).then(({ violations }) => violations)", options)
    return [f"{one['id']}: {', '.join(str(node['target']) for node in one['nodes'])}" for one in found]
