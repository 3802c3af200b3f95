"""Write docs/page.jpg: the web page with a listing of synthetic photos, served from a bundle.

    python -m scripts.screenshot_page BUNDLE [docs/page.jpg] [--width 1200 --height 900] [--dark] [--language en]

Needs a Chromium and a Japanese font (`apt-get install chromium fonts-ipaexfont-gothic`).
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.support.browser import open_browser
from training.data.synthetic import create_synthetic_photo

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("output", type=Path, nargs="?", default=ROOT / "docs" / "page.jpg")
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--language", default="en")
    options = parser.parse_args()
    command = [sys.executable, "-m", "listing_vision", "serve", str(options.bundle.resolve())]
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("wb") as log:
        process = subprocess.Popen([*command, "--port", "0", "--http-port", "0"], stdout=log, stderr=log, cwd=ROOT)
        try:
            take(_url(process, Path(folder) / "log"), Path(folder), options)
        finally:
            process.terminate()
            process.wait(60)


def _url(process: "subprocess.Popen[bytes]", log: Path) -> str:
    while "listening on" not in log.read_text():
        if process.poll() is not None:
            raise SystemExit(log.read_text())
        time.sleep(0.1)
    return re.findall(r"HTTP at (\S+)", log.read_text())[-1]


def take(url: str, folder: Path, options: argparse.Namespace) -> None:
    photos = []
    for number in range(3):
        photos.append(folder / f"{number}.jpg")
        photos[-1].write_bytes(create_synthetic_photo(0, 2, np.random.default_rng(21 + number)))
    with open_browser() as running:
        context = running.new_context(
            viewport={"width": options.width, "height": options.height},
            color_scheme="dark" if options.dark else "light",
            locale="ja-JP" if options.language == "ja" else "en-GB",
        )
        page = context.new_page()
        page.goto(url)
        page.set_input_files("#files", list(map(str, photos)))
        page.wait_for_selector("#found:not([hidden])")
        page.locator("#views li:first-child .look").click()
        page.wait_for_selector("canvas")
        page.screenshot(path=str(options.output), full_page=options.width < 600, **_quality(options.output))
    print(f"written: {options.output}")


def _quality(path: Path) -> dict[str, int]:
    return {"quality": 88} if path.suffix in (".jpg", ".jpeg") else {}


if __name__ == "__main__":
    main()
