"""Write docs/page.jpg, page-ja.jpg and page-phone.jpg: the web page with a listing of synthetic photos.

    python -m scripts.screenshot_page BUNDLE [--folder docs]

Needs a Chromium and a Japanese font (`apt-get install chromium fonts-ipaexfont-gothic`).
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from tests.support.browser import open_browser
from tests.support.page_states import create_page_photos, wait_for_phase
from tests.support.serving_process import start_serve

ROOT = Path(__file__).resolve().parent.parent
SHOTS: dict[str, dict[str, Any]] = {
    "page.jpg": {"locale": "en-GB", "viewport": {"width": 1200, "height": 900}},
    "page-ja.jpg": {"locale": "ja-JP", "viewport": {"width": 1200, "height": 900}},
    "page-phone.jpg": {"locale": "en-GB", "viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        served = start_serve(
            options.bundle.resolve(), Path(folder) / "serve.log", "--http-port", "0", "--outcomes", folder
        )
        try:
            take_all(served.http_url, Path(folder), options.folder)
        finally:
            served.stop()


def take_all(url: str, photo_folder: Path, output_folder: Path) -> None:
    photos = create_page_photos(photo_folder)
    with open_browser() as running:
        for name, options in SHOTS.items():
            page = running.new_context(**options).new_page()
            page.goto(url)
            page.set_input_files("#files", photos.good)
            wait_for_phase(page, "answered")
            if options["viewport"]["width"] > 600:  # on a phone the map would fill the screen
                page.locator("#views li:first-child .looks button").first.click()
                page.wait_for_selector("#views .looked")
            page.screenshot(path=str(output_folder / name), quality=88)
            print(f"written: {output_folder / name}")


if __name__ == "__main__":
    main()
