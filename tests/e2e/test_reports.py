"""The reports in a real browser: access, sizes, print, and what their one script does."""

import json

import pytest

from tests.support.browser import find_chromium, find_violations, find_violations_by_width, open_browser
from tests.support.reports import write_reports

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium: apt-get install chromium")

KINDS = ("evaluation", "comparison", "suspects", "experiment")
WIDTHS = (1280, 390, 320)
PRINTED_PX = 718  # A4 less margins


@pytest.fixture(scope="module")
def browser():
    with open_browser() as running:
        yield running


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return write_reports(tmp_path_factory.mktemp("reports"))


@pytest.fixture
def open_report(browser, reports):
    opened = []

    def open_kind(kind, **options):
        page = browser.new_context(**options).new_page()
        opened.append(page)
        problems = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(reports[kind].as_uri())
        assert problems == []
        return page

    yield open_kind
    for page in opened:
        page.context.close()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_keeps_anyone_out_at_any_width(open_report, kind):
    page = open_report(kind)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    assert find_violations_by_width(page, WIDTHS, height=900) == {width: [] for width in WIDTHS}


def test_dark_colours_can_be_read(open_report):
    assert find_violations(open_report("comparison", color_scheme="dark")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_tables_fit_a_desk_and_a_phone(open_report, kind):
    page = open_report(kind, viewport={"width": 1280, "height": 900})
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        cut = """() => [...document.querySelectorAll(".table:not(.matrix)")]
          .filter((one) => one.scrollWidth > one.clientWidth).map((one) => one.getAttribute("aria-label"))"""
        assert (width, page.evaluate(cut)) == (width, [])


@pytest.mark.parametrize("kind", KINDS)
def test_print_loses_nothing(open_report, kind):
    page = open_report(kind, viewport={"width": PRINTED_PX, "height": 1000})
    page.emulate_media(media="print")
    cut = """() => [...document.querySelectorAll(".table")]
      .filter((one) => one.getBoundingClientRect().height === 0 || one.scrollWidth > one.clientWidth)
      .map((one) => one.getAttribute("aria-label"))"""
    assert page.evaluate(cut) == []


def test_categories_can_be_sorted_and_filtered(open_report):
    page = open_report("evaluation")
    box = page.locator("#listing-categories").locator("xpath=..").locator("[data-filter=categories]")
    box.get_by_role("button", name="labelled").click()
    counts = [int(text) for text in box.locator("tbody tr td:nth-child(2)").all_inner_texts()]
    assert counts == sorted(counts)
    page.get_by_label("Filter categories").first.fill("lemon")
    assert box.locator("tbody tr:visible th").all_inner_texts() == ["Fruit > Lemon"]
    page.emulate_media(media="print")
    assert box.locator("tbody tr:visible").count() == len(counts)


def test_the_slider_moves_precision_and_coverage_of_the_tune_listings(open_report):
    page = open_report("evaluation")
    part = page.locator("[data-slider]").first
    rows = part.locator("tbody tr")
    slider = part.get_by_role("slider")
    start = rows.nth(rows.count() - 1 - int(slider.input_value())).locator("th").text_content().strip()
    assert float(start.removeprefix("from ")) >= 0.6  # the certified threshold
    slider.fill(str(rows.count() - 1))
    strictest = [text.strip() for text in rows.first.locator("th, td").all_text_contents()]
    said = part.locator("output").inner_text()
    assert said == f"filled {strictest[0]}: {strictest[2]} % of the tune listings, {strictest[3]} % of these right"
    slider.fill("0")
    assert part.locator("output").inner_text() != said


def test_suspects_are_filtered_and_exported_as_a_manifest(open_report, tmp_path):
    page = open_report("suspects")
    assert page.get_by_text("Too weak to accuse: the model agrees with only 68.0%").count() == 1
    assert page.get_by_text("over 99.9%").count() == 2
    page.get_by_label("Filter category suspects").fill("lemon")
    with page.expect_download() as download:
        page.get_by_role("button", name="Export the listed photos").click()
    download.value.save_as(tmp_path / "suspects.jsonl")
    (row,) = [json.loads(line) for line in (tmp_path / "suspects.jsonl").read_text().splitlines()]
    assert (row["listing_id"], row["category"], row["brand"]) == ("listing 2", "Fruit > Apple > Gala", "")
