"""The page for people, in a real browser, served by a real gateway with a real Triton behind it."""

import hashlib
import re
from urllib.parse import urlsplit

import numpy as np
import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from tests.support.browser import find_chromium, open_browser
from training.data.synthetic import create_synthetic_photo

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium: apt-get install chromium")

TOKEN = "a-token-of-the-page"


@pytest.fixture(scope="module")
def open_page():
    """Opens a page that may neither complain nor ask any other host."""
    with open_browser() as running:
        opened = []

        def open_one(url, **options):
            page = running.new_context(**{"locale": "en-GB", **options}).new_page()
            page.set_default_timeout(60_000)
            complaints, hosts = [], set()
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
            page.goto(url)
            opened.append((page, complaints, hosts, urlsplit(url).netloc))
            return page

        yield open_one
        for page, complaints, hosts, host in opened:
            assert not [said for said in complaints if "401" not in said and "400" not in said]
            assert hosts - {""} == {host}
            page.context.close()


@pytest.fixture(scope="module")
def url(bundle, start_serving, triton_installation, tmp_path_factory):
    log = tmp_path_factory.mktemp("page") / "serve.log"
    return start_serving(bundle.folder, log, "--http-port", "0").http_url


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for number in range(3):
        paths.append(folder / f"{number}.jpg")
        paths[-1].write_bytes(create_synthetic_photo(2, 2, np.random.default_rng(number)))
    (folder / "bad.jpg").write_bytes(b"no photo at all")
    return [*map(str, paths), str(folder / "bad.jpg")]


def wait_for_suggestion(page):
    page.wait_for_selector("#found:not([hidden])")
    return page.locator("#state").inner_text()


def test_photos_of_a_listing_are_answered_and_explained(open_page, url, files, bundle):
    page = open_page(url)
    assert page.locator("#state").inner_text() == "Add photos to see a category and a brand."
    page.set_input_files("#files", files)
    assert wait_for_suggestion(page) == "Answered from 3 of 4 photos."
    names = page.locator("#path .name").all_inner_texts()
    paths = {tuple(c.name for c in bundle.taxonomy.get_lineage(leaf)) for leaf in bundle.taxonomy.leaf_ids}
    assert tuple(names) in paths
    assert set(page.locator("#path .badge").all_inner_texts()) <= {"Filled in", "Suggested"}
    for step in page.locator("#path li.suggested").all():
        step.locator("summary").click()
        assert step.locator("details p").inner_text()
    assert page.locator("#brand .name").inner_text()
    assert page.locator("#alternatives li").count() == 4
    facts = page.locator("#facts").inner_text()
    assert bundle.info.model_version in facts
    assert re.search(r"model [\d.]+ ms", facts)
    assert page.locator("#views li.bad .error").inner_text()
    page.locator("#views li:first-child .look").click()
    page.wait_for_selector("#views li:first-child canvas")
    told = page.locator("#views li:first-child").inner_text()
    assert "Brighter parts matter more" in told or "No single part decides" in told
    page.locator("#views li.bad .remove").click()
    page.get_by_text("Answered from 3 of 3 photos.").wait_for()


def test_it_speaks_japanese_to_those_who_do(open_page, url, files):
    page = open_page(url, locale="ja-JP")
    assert page.locator("html").get_attribute("lang") == "ja"
    page.set_input_files("#files", files[:1])
    assert wait_for_suggestion(page) == "1枚中1枚の写真から判定しました。"
    page.get_by_role("button", name="English").click()
    assert page.locator("#state").inner_text() == "Answered from 1 of 1 photos."
    assert page.locator("html").get_attribute("lang") == "en"


def test_each_reason_and_stage_of_the_contract_has_words_in_both_languages(open_page, url):
    words = open_page(url).evaluate("import('./words.js').then(({ WORDS }) => WORDS)")
    enums = (pb.NotPrefilledReason, pb.Stage, reasons_pb2.PhotoErrorReason)
    expected = {name for enum in enums for name in enum.keys()[1:]}  # the first one is never sent
    assert expected <= set(words["en"])
    assert set(words["en"]) == set(words["ja"])
    for key, text in words["en"].items():
        assert set(re.findall(r"{\d}", text)) == set(re.findall(r"{\d}", words["ja"][key])), key


def test_the_keyboard_is_enough(open_page, url, files):
    page = open_page(url)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.language || document.activeElement.id"))
    assert reached[:3] == ["en", "ja", "files"]
    page.set_input_files("#files", files[:1])
    wait_for_suggestion(page)
    page.locator("#files").focus()
    page.keyboard.press("Tab")  # the photo's remove button
    page.keyboard.press("Enter")
    page.wait_for_selector("#found", state="hidden")
    assert page.locator("#views li").count() == 0


def test_a_phone_shows_it_whole(open_page, url, files):
    page = open_page(url, viewport={"width": 320, "height": 640}, has_touch=True)
    page.set_input_files("#files", files[:3])
    wait_for_suggestion(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    for target in page.locator("button:visible, .button:visible").all():
        assert min(target.bounding_box()["height"], target.bounding_box()["width"]) >= 36


def test_photos_of_which_none_can_be_used_are_each_told_why(open_page, url, files):
    page = open_page(url)
    page.set_input_files("#files", files[3:])
    page.wait_for_selector("#views .error")
    assert page.locator("#state").inner_text() == "None of the photos could be read."
    assert page.locator("#views .error").inner_text().startswith("Not a photo we can read.")
    assert not page.locator("#found").is_visible()


def test_a_token_is_asked_for_and_forgotten(open_page, bundle, start_serving, files, tmp_path):
    (tmp_path / "tokens").write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    options = ("--in-process", "--http-port", "0", "--tokens", str(tmp_path / "tokens"))
    page = open_page(start_serving(bundle.folder, tmp_path / "serve.log", *options).http_url)
    page.set_input_files("#files", files[:1])
    page.wait_for_selector("#access:not([hidden])")
    assert page.locator("#state").inner_text() == "This service needs an access token."
    page.fill("#token", "another")
    page.keyboard.press("Enter")
    page.get_by_text("Token not accepted").wait_for()
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    assert wait_for_suggestion(page) == "Answered from 1 of 1 photos."
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
