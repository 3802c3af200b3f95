"""The page for people, in a real browser, served by a real gateway with a real Triton behind it."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from listing_vision_client.protocol import reasons_pb2
from serving.http_api.errors import get_statuses
from tests.support import toolchains
from tests.support.browser import find_chromium, find_violations, find_violations_by_width, open_browser
from tests.support.page_states import STATES, create_page_photos, refuse, replace_answer, wait_for_phase

pytestmark = pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium: apt-get install chromium")

TOKEN = "a-token-of-the-page"
WIDTHS = (1280, 390, 320)
NAMES_OF_THEIR_OWN = r"JPEG|PNG|WebP|GIF|AVIF|HEIC|MB|API|JSON|ID|\d\.jpg|broken\.jpg|phone\.heic"
"""What is written in Latin letters in Japanese too."""
LATIN_TEXTS = """() => {
  document.querySelectorAll("details").forEach((one) => (one.open = true));
  const isShown = (one) => one.checkVisibility() && !one.closest("[lang=en], [translate=no]");
  const texts = [];
  const nodes = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (nodes.nextNode()) if (isShown(nodes.currentNode.parentElement)) texts.push(nodes.currentNode.data);
  for (const one of [...document.querySelectorAll("*")].filter(isShown)) {
    for (const name of ["aria-label", "alt", "title", "placeholder"]) texts.push(one.getAttribute(name) ?? "");
  }
  return texts.filter((text) => /[a-z]{2}/i.test(text));
}"""


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
            # Chromium itself reports each response that is an error.
            assert not [said for said in complaints if not said.startswith("Failed to load resource")]
            assert hosts - {""} == {host}
            page.context.close()


@pytest.fixture(scope="module")
def url(bundle, start_serving, triton_installation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    options = ("--http-port", "0", "--outcomes", str(folder / "outcomes"))
    return start_serving(bundle.folder, folder / "serve.log", *options).http_url


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return create_page_photos(tmp_path_factory.mktemp("photos"))


def wait_for_suggestion(page):
    wait_for_phase(page, "answered")
    return page.locator("#state").evaluate("(state) => state.firstChild.data")


@pytest.fixture(scope="module")
def shared_page(open_page, url):
    return open_page(url)


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_accessible_and_fits_at_each_width_and_speaks_japanese(
    open_page, shared_page, url, photos, state, tmp_path
):
    # A slow network cannot be taken back from a page. Otherwise a new context costs more than what is checked in it.
    page = open_page(url) if state in ("uploading", "answering") else shared_page
    page.unroute_all(behavior="ignoreErrors")
    page.context.set_offline(False)
    page.goto(url)
    STATES[state](page, photos)
    assert find_violations_by_width(page, WIDTHS, height=844) == {width: [] for width in WIDTHS}
    page.get_by_role("button", name="日本語").click()
    assert [
        text for text in page.evaluate(LATIN_TEXTS) if re.search("[a-z]{2}", re.sub(NAMES_OF_THEIR_OWN, "", text), re.I)
    ] == []
    assert page.locator("html").get_attribute("lang") == "ja"
    page.screenshot(path=tmp_path / f"{state}.jpg", quality=60, full_page=True)
    assert (tmp_path / f"{state}.jpg").stat().st_size


def test_forced_colours_dark_and_twice_the_size(open_page, url, photos):
    # 1280 px at 200 % are 640 px.
    page = open_page(url, viewport={"width": 640, "height": 450}, device_scale_factor=2, color_scheme="dark")
    STATES["explained"](page, photos)
    assert find_violations(page) == []
    page.emulate_media(forced_colors="active")
    assert find_violations(page, without_rules=["color-contrast"]) == []  # axe-core sees the colours of the style sheet
    assert page.evaluate("document.documentElement.scrollWidth") <= 640
    bar = page.locator("#path meter").first
    assert bar.evaluate("(meter) => getComputedStyle(meter).borderTopWidth") == "1px"
    page.evaluate("document.documentElement.style.fontSize = '200%'")
    assert page.evaluate("document.documentElement.scrollWidth") <= 640


def test_photos_of_a_listing_are_answered(open_page, url, photos, bundle):
    page = open_page(url)
    assert page.locator("#state").inner_text() == "Add photos to see a category and a brand."
    page.set_input_files("#files", [*photos.good, photos.broken])
    assert wait_for_suggestion(page) == "Answered from 3 of 4 photos."
    names = page.locator("#path .name").all_inner_texts()
    paths = {tuple(c.name for c in bundle.taxonomy.get_lineage(leaf)) for leaf in bundle.taxonomy.leaf_ids}
    assert tuple(names) in paths
    assert set(page.locator("#path .badge").all_inner_texts()) <= {"Filled in", "Suggested"}
    for step in page.locator("#path li.suggested").all():
        step.locator("summary").click()
        assert step.locator("details p").inner_text()
    said = page.locator("#state").text_content()
    assert all(name in said for name in [*names, page.locator("#brand .name").inner_text()])
    others = page.locator("#alternatives li").all_inner_texts()
    assert others
    for other in others:
        *path, percentage = re.split(" › |\n", other)
        assert tuple(path) in paths - {tuple(names)}
        assert float(percentage.removesuffix("%")) >= 1
    facts = page.locator("#facts").inner_text()
    assert bundle.info.model_version in facts
    assert re.search(r"model [\d.]+ ms", facts)
    assert page.locator("#views .file").all_inner_texts() == ["0.jpg", "1.jpg", "2.jpg", "broken.jpg"]
    assert page.locator("#views li.bad .error").inner_text().startswith("Not a photo we can read.")
    page.locator("#views li.bad .remove").click()
    page.get_by_text("Answered from all 3 photos.").wait_for()
    assert json.loads(page.locator("#response").text_content())["categoryPath"][0]["name"] == names[0]


def test_alternatives_are_listed_from_one_percent(open_page, url, photos):
    page = open_page(url)
    probabilities = (0.5, 0.3, 0.01, 0.0099, 0.0001)

    def change(answer):
        # The suggested brand, which is the first of the alternatives, stands above them.
        answer["brand"] |= {key: answer["brandAlternatives"][0][key] for key in ("kind", "brandId")}
        for name in ("categoryAlternatives", "brandAlternatives"):
            for alternative, probability in zip(answer[name], probabilities, strict=True):
                alternative["probability"] = probability

    replace_answer(page, photos, change)
    for shown in ("#alternatives", "#brand-alternatives"):
        assert page.locator(f"{shown} b").all_inner_texts() == ["30%", "1%"]


@pytest.mark.parametrize("kind", ["BRAND_KIND_UNDETERMINED", "BRAND_KIND_OTHER"])
def test_where_no_brand_is_suggested_none_is_listed(open_page, url, photos, kind):
    page = open_page(url)

    def change(answer):
        answer["brand"] = {
            "kind": kind,
            "action": "ACTION_SUGGEST",
            "notPrefilled": answer["brand"].get("notPrefilled"),
        }
        answer["brandAlternatives"][0]["probability"] = 0.31

    replace_answer(page, photos, change)
    assert page.locator("#brand-part").is_visible()
    assert page.locator("#brand-alternatives-part").is_hidden()
    page.locator("#brand-choice").click()  # the list to choose from has them all the same, the likeliest first
    assert page.locator("#brand-choice-list").is_visible()


def test_a_confidence_is_never_100_percent(open_page, url):
    shown = open_page(url).evaluate(
        """import('./text.js').then(({ percent, percentPair }) =>
        [...[0, 0.0004, 0.5, 0.99889, 0.99949, 1].map((share) => percent(share)), percentPair(0.9712, 0.9714),
         percentPair(0.9992, 0.9996)])"""
    )
    assert shown[:6] == ["0%", "under 0.1%", "50%", "99.9%", "over 99.9%", "over 99.9%"]
    assert shown[6:] == [["97.12%", "97.14%"], ["99.92%", "99.96%"]]


def test_the_names_are_japanese_for_those_who_read_it(open_page, url, photos):
    page = open_page(url, locale="ja-JP")
    assert page.locator("html").get_attribute("lang") == "ja"
    page.set_input_files("#files", photos.good[:1])
    assert wait_for_suggestion(page) == "写真1枚から判定しました。"
    assert not page.locator("#found [lang=en]").count()
    assert not re.search("[a-z]{2}", " ".join(page.locator("#path .name").all_inner_texts()))
    page.get_by_role("button", name="English").click()
    assert wait_for_suggestion(page) == "Answered from one photo."
    assert page.locator("html").get_attribute("lang") == "en"


def test_a_name_without_a_translation_is_marked_as_english(open_page, url, photos):
    def forget_japanese(route):
        taxonomy = route.fetch().json()
        for category in taxonomy["categories"]:
            del category["names"]["ja"]
        route.fulfill(json=taxonomy)

    page = open_page(url, locale="ja-JP")
    page.route("**/v1/taxonomy*", forget_japanese)
    page.set_input_files("#files", photos.good[:1])
    wait_for_suggestion(page)
    levels = page.locator("#path .name").all()
    assert levels
    assert {level.get_attribute("lang") for level in levels} == {"en"}


def test_each_reason_and_stage_of_the_contract_has_words_in_both_languages(open_page, url):
    words = open_page(url).evaluate("import('./words.js').then(({ WORDS }) => WORDS)")
    enums = (pb.NotPrefilledReason, pb.Stage, reasons_pb2.PhotoErrorReason)
    expected = {name for enum in enums for name in enum.keys()[1:]}  # the first one is never sent
    expected |= {name for name in reasons_pb2.ErrorReason.keys()[1:] if get_statuses(name)[0] in (401, 408, 413, 429)}
    expected |= {name for name in reasons_pb2.ErrorReason.keys()[1:] if get_statuses(name)[0] in (503, 504)}
    assert expected <= set(words["en"])
    assert set(words["en"]) == set(words["ja"])
    for key, text in words["en"].items():
        assert set(re.findall(r"{\d}", text)) == set(re.findall(r"{\d}", words["ja"][key])), key


def test_an_answer_outlives_what_fails_after_it(open_page, url, photos):
    page = open_page(url)
    STATES["offline"](page, photos)
    assert page.locator("#state").inner_text() == "The service cannot be reached. Check your connection."
    assert page.locator("#path .name").count()
    assert page.locator("#stale").is_visible()
    page.context.set_offline(False)
    page.get_by_text("Answered from all 4 photos.").wait_for()
    assert not page.locator("#stale").is_visible()


def test_what_runs_can_be_cancelled_and_tried_again(open_page, url, photos):
    page = open_page(url)
    page.route("**/v1/listings:classify", lambda route: None, times=1)
    page.set_input_files("#files", photos.good)
    page.get_by_role("button", name="Cancel").click()
    assert page.locator("#state").inner_text() == "Cancelled."
    assert page.evaluate("document.activeElement.id") == "retry"
    page.keyboard.press("Enter")
    assert wait_for_suggestion(page) == "Answered from all 3 photos."


def test_sample_photos_that_do_not_arrive_can_be_asked_for_again(open_page, url, photos):
    page = open_page(url)
    STATES["empty"](page, photos)
    page.context.set_offline(True)
    page.locator("#samples").click()
    page.get_by_text("The service cannot be reached.").wait_for()
    page.context.set_offline(False)
    page.get_by_text("Add photos to see a category and a brand.").wait_for()
    page.locator("#samples").click()
    assert wait_for_suggestion(page) == "Answered from all 2 photos."


def test_it_tries_again_by_itself_but_not_for_ever(open_page, url, photos):
    page = open_page(url)
    page.clock.install()
    refuse(page, "**/v1/listings:classify", "MODEL_UNAVAILABLE", retry_delay_s=1)
    page.set_input_files("#files", photos.good)
    for _ in range(5):
        page.get_by_text("The model is not available right now; retrying in 1 s.").wait_for()
        page.clock.run_for(1000)
        page.wait_for_selector("#answer:not([data-phase=uploading])")
    page.get_by_text("The model is not available; try again later.").wait_for()
    page.unroute("**/v1/listings:classify")
    page.get_by_role("button", name="Retry").click()
    assert wait_for_suggestion(page) == "Answered from all 3 photos."


def test_an_answer_without_its_taxonomy_has_its_own_names(open_page, url, photos):
    page = open_page(url)
    page.route("**/v1/taxonomy*", lambda route: route.abort())
    page.set_input_files("#files", photos.good)
    assert wait_for_suggestion(page) == "Answered from all 3 photos."
    path = json.loads(page.locator("#response").text_content())["categoryPath"]
    assert page.locator("#path .name").all_inner_texts() == [level["name"] for level in path]


def test_photos_that_stand_out_are_marked(open_page, url, photos):
    page = open_page(url)
    STATES["odd photos"](page, photos)
    assert page.locator("#scope").inner_text() == "These photos seem to show different items."
    assert page.locator("#views .odd").all_inner_texts() == ["Shows a different item", "Not in our categories", ""]
    assert page.locator("#brand .name").inner_text() == "Brand not recognised"
    page = open_page(url)
    STATES["out of scope"](page, photos)
    assert page.locator("#scope").inner_text() == "This doesn’t look like anything in our categories."
    assert not page.locator("#brand-part").is_visible()


def test_a_map_lies_over_the_photo_and_the_focus_stays(open_page, url, photos):
    page = open_page(url)
    page.route("**/v1/photos:explain", lambda route: None, times=1)
    page.set_input_files("#files", photos.good[:2])
    wait_for_suggestion(page)
    first = page.locator("#views li").first
    for target in ("Category", "Brand"):
        button = first.get_by_role("button", name=target)
        button.focus()
        page.keyboard.press("Enter")
        if target == "Category":  # its first call never ends
            first.get_by_role("button", name="Cancel").click()
            assert button.evaluate("(button) => button === document.activeElement")
            page.keyboard.press("Enter")
        first.locator(f"button[aria-pressed=true]:text('{target}')").wait_for()
        assert button.evaluate("(button) => button === document.activeElement")
        told = first.locator(".legend").inner_text()
        assert "Red: what most supported" in told or "No single part decides" in told
        photo, overlay = (first.locator(of).bounding_box() for of in ("img", "canvas"))
        assert overlay == pytest.approx(photo, abs=1)
    shown, natural = first.locator("img").evaluate("(i) => [i.width / i.height, i.naturalWidth / i.naturalHeight]")
    assert shown == pytest.approx(natural, rel=0.02)
    page.keyboard.press("Enter")
    assert not first.locator("canvas").is_visible()


def test_each_field_is_confirmed_or_corrected_by_keyboard(open_page, url, photos, bundle):
    page = open_page(url)
    STATES["answered"](page, photos)
    answer = json.loads(page.locator("#response").text_content())
    leaf = answer["categoryPath"][-1]["categoryId"]
    brand = next(one for one in bundle.taxonomy.brands if one.id != answer["brand"]["brandId"])
    other = next(one for one in bundle.taxonomy.leaf_ids if one != leaf)
    page.get_by_role("button", name="Send").click()
    page.get_by_text("Say for category or brand whether it is right.").wait_for()
    page.get_by_label("Yes: ").first.check()
    page.get_by_role("combobox", name="The right brand").focus()
    page.keyboard.type(brand.name[:4].upper())
    listed = page.locator("#brand-choice-list li").all_inner_texts()
    assert listed == [brand.name, f"Not in our list: {brand.name[:4].upper()}"]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    with page.expect_response("**/v1/outcomes") as sent:
        page.keyboard.press("Enter")  # in the field, whose list is closed
    request = sent.value.request.post_data_json
    assert request["categoryId"] == leaf
    assert request["brand"] == {"brandId": brand.id}
    assert request["suggestionId"]
    page.get_by_text("Stored. Thank you.").wait_for()
    assert sent.value.json() == {"suggestionIdStatus": "SUGGESTION_ID_STATUS_VALID"}
    with page.expect_response("**/v1/outcomes") as sent_again:
        page.get_by_role("button", name="Send").click()
    assert sent_again.value.request.post_data_json == request  # one listing, so that the last outcome counts
    page.get_by_role("button", name="日本語").click()
    page.get_by_text("保存しました。").wait_for()
    page.get_by_role("button", name="English").click()
    page.get_by_role("combobox", name="The right category").fill(
        bundle.taxonomy.format_path(other).replace(" > ", " ").lower()
    )
    page.keyboard.press("Enter")
    assert page.get_by_role("combobox", name="The right category").input_value() == bundle.taxonomy.format_path(
        other
    ).replace(" > ", " › ")
    page.get_by_role("combobox", name="The right brand").fill("Nobody's")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.get_by_label("Listing ID").fill("m123")
    page.get_by_role("button", name="日本語").click()
    kept = [page.locator(field).input_value() for field in ("#category-choice", "#brand-choice", "#listing")]
    assert kept == [" › ".join(c.names["ja"] for c in bundle.taxonomy.get_lineage(other)), "Nobody's", "m123"]
    page.get_by_role("button", name="English").click()
    with page.expect_response("**/v1/outcomes") as sent:
        page.get_by_role("button", name="Send").click()
    request = sent.value.request.post_data_json
    assert (request["categoryId"], request["listingId"]) == (other, "m123")
    assert request["brand"] == {"otherName": "Nobody's"}
    assert sent.value.ok


@pytest.mark.parametrize(
    ("program", "command", "needed"),
    [
        ("curl", ["bash", "-c"], ["curl"]),
        ("Python", [sys.executable, "-c"], []),
        ("Node.js", ["node", "--input-type=module", "-e"], ["node"]),
    ],
    ids=["curl", "python", "node"],
)
def test_the_programs_make_the_call_that_the_page_made(open_page, url, photos, program, command, needed, tmp_path):
    toolchains.require_programs(*needed, debian="curl nodejs")
    odd = tmp_path / 'it\'s; "odd".jpg'
    odd.write_bytes(Path(photos.good[0]).read_bytes())
    page = open_page(url)
    page.set_input_files("#files", str(odd))
    wait_for_suggestion(page)
    page.locator("#api summary").click()
    page.get_by_role("button", name=program).click()
    code = page.locator("#program").text_content()
    page.locator("[data-copies=program]").click()
    page.get_by_text(re.compile("^(Copied|Selected)$")).wait_for()
    assert page.evaluate("getSelection().toString().trim()") == code.strip()
    printed = subprocess.run(
        [*command, code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for name in page.locator("#path .name").all_inner_texts():
        assert name in printed


def test_the_keyboard_is_enough(open_page, url, photos):
    page = open_page(url)
    reached = []
    for _ in range(4):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.dataset.language || document.activeElement.id"))
    assert reached == ["en", "ja", "files", "samples"]
    page.keyboard.press("Enter")
    assert wait_for_suggestion(page) == "Answered from all 2 photos."
    page.locator("#clear").focus()
    page.keyboard.press("Tab")  # the first photo's remove button
    for num_left in (1, 0):
        page.keyboard.press("Enter")  # the focus goes to the next photo's
        assert page.locator("#views li").count() == num_left
    assert page.evaluate("document.activeElement.id") == "files"
    assert not page.locator("#found").is_visible()


def test_a_phone_shows_the_answer_to_20_photos_at_once(open_page, url, photos):
    page = open_page(url, viewport={"width": 390, "height": 844}, has_touch=True)
    STATES["21st photo"](page, photos)
    assert page.locator("#views li").count() == 20
    assert "Not added (1): 2.jpg" in page.locator("#notice").inner_text()
    box = page.locator("#path li").first.bounding_box()
    assert box["y"] + box["height"] < 844
    for target in page.locator("button:visible, .button:visible").all():
        assert min(target.bounding_box()["height"], target.bounding_box()["width"]) >= 36


def test_a_token_is_asked_for_and_forgotten(open_page, bundle, start_serving, photos, tmp_path):
    (tmp_path / "tokens").write_text(f"shop {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
    options = ("--in-process", "--http-port", "0", "--tokens", str(tmp_path / "tokens"))
    page = open_page(start_serving(bundle.folder, tmp_path / "serve.log", *options).http_url)
    page.get_by_text("This service needs an access token.").wait_for()
    page.set_input_files("#files", [photos.good[0], photos.heic])
    page.wait_for_function("() => document.activeElement.id === 'token'")
    page.fill("#token", "トークン")
    page.keyboard.press("Enter")
    page.get_by_text("Token not accepted").wait_for()
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    assert wait_for_suggestion(page) == "Answered from all 2 photos."
    page.wait_for_function("() => document.querySelectorAll('#views img')[1].naturalWidth > 0")
    assert "Bearer $LISTING_VISION_TOKEN" in page.locator("#program").text_content()
    assert page.get_by_text("Corrections are not stored by this service.").is_visible()
    assert page.evaluate("localStorage.length + sessionStorage.length") == 0
