import asyncio

import pytest

from serving.auth.file_watcher import CHECK_INTERVAL_S
from serving.auth.static_tokens import StaticTokenVerifier
from tests.support.callers import write_token_file
from tests.support.clock import ManualClock
from vision.errors import ListingVisionError


def test_tokens_are_reloaded_and_a_broken_file_changes_nothing(tmp_path, caplog):
    clock = ManualClock()
    path = write_token_file(tmp_path / "tokens", upload="one")
    verifier = StaticTokenVerifier(path, clock=clock)

    def identify(token):
        return asyncio.run(verifier.identify_caller(token))

    assert identify("one") == "upload"
    write_token_file(path, upload="another", backfill="two")
    clock.advance(CHECK_INTERVAL_S)
    assert (identify("one"), identify("another"), identify("two")) == (None, "upload", "backfill")
    path.write_text("upload not-a-hash\n")
    clock.advance(CHECK_INTERVAL_S)
    assert identify("two") == "backfill"
    assert "line 1: not a name and a SHA-256 in hex; the old tokens stay" in caplog.text
    path.unlink()
    clock.advance(CHECK_INTERVAL_S)
    assert identify("two") == "backfill"


@pytest.mark.parametrize("text", ["", "# nobody\n", "name\n", "name 1234\n", "name " + "g" * 64])
def test_a_token_file_that_names_nobody_is_refused(tmp_path, text):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ListingVisionError, match="token file"):
        StaticTokenVerifier(path)
