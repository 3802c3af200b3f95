"""How the page is brought into each of its states, by what a person does and by what happens to the service."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from serving.http_api.errors import error_response
from tests.support import photo_files
from training.data.synthetic import create_synthetic_photo

__all__ = ["STATES", "PagePhotos", "create_page_photos", "refuse", "replace_answer", "wait_for_phase"]

_CLASSIFY, _MODEL, _EXPLAIN = "**/v1/listings:classify", "**/v1/model", "**/v1/photos:explain"
_SLOW = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 1000}


class PagePhotos(NamedTuple):
    """Paths."""

    good: Sequence[str]
    """Three synthetic photos of a listing."""
    broken: str
    heic: str


def create_page_photos(folder: Path) -> PagePhotos:
    good = [folder / f"{number}.jpg" for number in range(3)]
    for number, path in enumerate(good):
        path.write_bytes(create_synthetic_photo(0, 2, np.random.default_rng(21 + number)))
    (folder / "broken.jpg").write_bytes(b"no photo at all")
    (folder / "phone.heic").write_bytes(photo_files.heif(photo_files.hevc_item(photo_files.rotation_property(3))))
    return PagePhotos([str(path) for path in good], str(folder / "broken.jpg"), str(folder / "phone.heic"))


def wait_for_phase(page: Any, phase: str) -> None:
    page.wait_for_selector(f"#answer[data-phase={phase}]")


def refuse(page: Any, pattern: str, reason: str, *, retry_delay_s: float | None = None) -> None:
    """Let calls fail as the service lets them fail."""
    refusal = error_response(reason, "words for programmers", retry_delay_s=retry_delay_s)
    page.route(
        pattern,
        lambda route: route.fulfill(
            status=refusal.status_code, body=bytes(refusal.body), content_type="application/json"
        ),
    )


def reach_empty(page: Any, photos: PagePhotos) -> None:
    page.wait_for_function("() => document.querySelector('#limits').textContent.includes('16')")


def reach_uploading(page: Any, photos: PagePhotos) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", _SLOW)
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "uploading")
    page.wait_for_function("() => document.querySelector('#progress').value > 0")


def reach_answering(page: Any, photos: PagePhotos) -> None:
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", {**_SLOW, "latency": 60_000, "uploadThroughput": -1})
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "answering")


def reach_answered(page: Any, photos: PagePhotos) -> None:
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "answered")


def reach_one_broken(page: Any, photos: PagePhotos) -> None:
    page.set_input_files("#files", [*photos.good, photos.broken])
    wait_for_phase(page, "answered")


def reach_all_broken(page: Any, photos: PagePhotos) -> None:
    page.set_input_files("#files", [photos.broken] * 2)
    wait_for_phase(page, "failed")


def reach_too_many(page: Any, photos: PagePhotos) -> None:
    page.set_input_files("#files", [*photos.good] * 7)
    wait_for_phase(page, "answered")


def reach_heic(page: Any, photos: PagePhotos) -> None:
    page.set_input_files("#files", photos.heic)
    wait_for_phase(page, "answered")
    page.wait_for_function("() => document.querySelector('#views img').naturalWidth > 0")


def reach_offline(page: Any, photos: PagePhotos) -> None:
    reach_answered(page, photos)
    page.context.set_offline(True)
    page.set_input_files("#files", photos.heic)
    wait_for_phase(page, "failed")


def reach_busy(page: Any, photos: PagePhotos) -> None:
    refuse(page, _CLASSIFY, "TOO_BUSY", retry_delay_s=60)
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "waiting")


def reach_model_away(page: Any, photos: PagePhotos) -> None:
    refuse(page, _CLASSIFY, "MODEL_UNAVAILABLE", retry_delay_s=60)
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "waiting")


def reach_token_wanted(page: Any, photos: PagePhotos) -> None:
    for pattern in (_CLASSIFY, _MODEL):
        refuse(page, pattern, "UNAUTHENTICATED")
    page.set_input_files("#files", photos.good)
    wait_for_phase(page, "token")


def reach_token_refused(page: Any, photos: PagePhotos) -> None:
    reach_token_wanted(page, photos)
    page.fill("#token", "another")
    page.keyboard.press("Enter")
    page.get_by_text("Token not accepted").wait_for()


def replace_answer(page: Any, photos: PagePhotos, change: Callable[[dict[str, Any]], None]) -> None:
    """Let the page show the real answer with a change that the small model of the tests never answers."""
    reach_answered(page, photos)
    answer = json.loads(page.locator("#response").text_content())
    change(answer)
    page.route(_CLASSIFY, lambda route: route.fulfill(json=answer))
    page.locator("#clear").click()
    reach_answered(page, photos)


def reach_odd_photos(page: Any, photos: PagePhotos) -> None:
    """The first photo shows something else than the others, the second one nothing of the taxonomy."""

    def change(answer: dict[str, Any]) -> None:
        reason = {"reason": "NOT_PREFILLED_REASON_PHOTOS_DISAGREE", "message": ""}
        for level in answer["categoryPath"]:
            level.update(action="ACTION_SUGGEST", notPrefilled=reason)
        answer["brand"] = {"kind": "BRAND_KIND_UNDETERMINED", "action": "ACTION_SUGGEST", "notPrefilled": reason}
        answer["photos"][0]["recognition"]["disagrees"] = True
        answer["photos"][1]["recognition"]["outOfScope"] = True

    replace_answer(page, photos, change)


def reach_out_of_scope(page: Any, photos: PagePhotos) -> None:
    """In a taxonomy without brands."""

    def change(answer: dict[str, Any]) -> None:
        reason = {"reason": "NOT_PREFILLED_REASON_OUT_OF_SCOPE", "message": ""}
        for level in answer["categoryPath"]:
            level.update(action="ACTION_SUGGEST", notPrefilled=reason)
        del answer["brand"]
        for photo in answer["photos"]:
            photo["recognition"]["outOfScope"] = True

    replace_answer(page, photos, change)


def reach_photo_busy(page: Any, photos: PagePhotos) -> None:
    """The service had no time for one of the photos."""
    error = {"reason": "PHOTO_SERVICE_BUSY", "message": ""}
    replace_answer(page, photos, lambda answer: answer["photos"].__setitem__(2, {"error": error}))
    page.wait_for_selector("#retry:not([hidden])")


def reach_explaining(page: Any, photos: PagePhotos) -> None:
    page.route(_EXPLAIN, lambda route: None)
    reach_answered(page, photos)
    page.locator("#views li:first-child .looks button").first.click()
    page.wait_for_selector("#views [aria-busy=true]")


def reach_explained(page: Any, photos: PagePhotos) -> None:
    reach_answered(page, photos)
    page.locator("#views li:first-child .looks button").first.click()
    page.wait_for_selector("#views .looked")


def reach_correcting(page: Any, photos: PagePhotos) -> None:
    reach_answered(page, photos)
    page.locator("#brand-choice").click()
    page.wait_for_selector("#brand-choice-list:not([hidden])")


def reach_opened(page: Any, photos: PagePhotos) -> None:
    """All that can be unfolded is."""
    reach_answered(page, photos)
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")


STATES: dict[str, Callable[[Any, PagePhotos], None]] = {
    "empty": reach_empty,
    "uploading": reach_uploading,
    "answering": reach_answering,
    "answered": reach_answered,
    "one broken photo": reach_one_broken,
    "all broken": reach_all_broken,
    "21st photo": reach_too_many,
    "HEIC": reach_heic,
    "offline": reach_offline,
    "busy": reach_busy,
    "model away": reach_model_away,
    "token wanted": reach_token_wanted,
    "token refused": reach_token_refused,
    "odd photos": reach_odd_photos,
    "out of scope": reach_out_of_scope,
    "photo busy": reach_photo_busy,
    "explaining": reach_explaining,
    "explained": reach_explained,
    "correcting": reach_correcting,
    "opened": reach_opened,
}
