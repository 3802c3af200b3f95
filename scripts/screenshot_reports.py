"""Write docs/report-{evaluation,comparison,suspects,experiment}.jpg: the first screen of each report.

    python -m scripts.screenshot_reports [--folder docs]

The models are invented and the photos drawn. Needs a Chromium (`apt-get install chromium`).
"""

import argparse
import tempfile
from pathlib import Path

from tests.support.browser import open_browser
from tests.support.reports import write_reports

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    output_folder: Path = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as folder, open_browser() as running:
        page = running.new_page(viewport={"width": 1280, "height": 900})
        for kind, report in write_reports(Path(folder)).items():
            page.goto(report.as_uri())
            page.screenshot(path=str(output_folder / f"report-{kind}.jpg"), quality=80)
            print(f"written: {output_folder / f'report-{kind}.jpg'}")


if __name__ == "__main__":
    main()
