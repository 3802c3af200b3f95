"""Signed names of suggestions: valid for their caller, their time and their key alone."""

import stat

import jwt
import pytest

from listing_vision_client.protocol import listing_vision_pb2 as pb
from serving.api.suggestion_id import MAX_ID_CHARS, SuggestionSigner, load_signing_keys, write_random_key
from vision.errors import ListingVisionError

MODEL = pb.ModelVersion(name="grocery", version="w1", taxonomy_version="t1", calibration_version="c1")
KEYS = [b"k" * 32, b"o" * 32]


def sign(signer, listing_id="listing 7", caller="shop"):
    return signer.sign(listing_id=listing_id, caller=caller, model=MODEL)


def test_an_id_says_what_it_was_signed_for():
    signed, uid = sign(SuggestionSigner(KEYS, validity_s=60))
    status, claims = SuggestionSigner(KEYS, validity_s=60).verify(signed, caller="shop")  # another replica
    assert status == pb.SUGGESTION_ID_STATUS_VALID
    assert (claims.uid, claims.listing_id, claims.caller, claims.model) == (uid, "listing 7", "shop", MODEL)


def test_two_suggestions_for_one_listing_have_two_names():
    signer = SuggestionSigner(KEYS, validity_s=60)
    assert sign(signer) != sign(signer)


def test_a_key_that_was_replaced_still_verifies():
    signed, _ = sign(SuggestionSigner(KEYS[1:], validity_s=60))
    assert SuggestionSigner(KEYS, validity_s=60).verify(signed, caller="shop")[0] == pb.SUGGESTION_ID_STATUS_VALID


@pytest.mark.parametrize("position", [5, 60, 200, -1])
def test_an_altered_id_is_invalid(position):
    signer = SuggestionSigner(KEYS, validity_s=60)
    signed = list(sign(signer)[0])
    signed[position] = "A" if signed[position] != "A" else "Q"
    assert signer.verify("".join(signed), caller="shop") == (pb.SUGGESTION_ID_STATUS_INVALID, None)


def test_what_no_valid_id_is():
    signer = SuggestionSigner(KEYS, validity_s=60)
    signed, _ = sign(signer)
    unsigned = jwt.encode(jwt.decode(signed, options={"verify_signature": False}), "", algorithm="none")
    statuses = {
        "": pb.SUGGESTION_ID_STATUS_MISSING,
        "nonsense": pb.SUGGESTION_ID_STATUS_INVALID,
        "x" * (MAX_ID_CHARS + 1): pb.SUGGESTION_ID_STATUS_INVALID,
        unsigned: pb.SUGGESTION_ID_STATUS_INVALID,
        sign(SuggestionSigner.with_random_key(validity_s=60))[0]: pb.SUGGESTION_ID_STATUS_INVALID,
        sign(SuggestionSigner(KEYS, validity_s=-1))[0]: pb.SUGGESTION_ID_STATUS_EXPIRED,
        sign(signer, caller="somebody")[0]: pb.SUGGESTION_ID_STATUS_OTHER_CALLER,
        jwt.encode({"exp": 1 << 40}, KEYS[0], algorithm="HS256"): pb.SUGGESTION_ID_STATUS_INVALID,
    }
    assert {given: signer.verify(given, caller="shop")[0] for given in statuses} == statuses


def test_the_longest_listing_id_fits():
    signer = SuggestionSigner(KEYS, validity_s=60)
    signed, _ = sign(signer, listing_id="\N{PARTY POPPER}" * 200, caller="c" * 100)
    assert len(signed) <= MAX_ID_CHARS
    assert signer.verify(signed, caller="c" * 100)[1].listing_id == "\N{PARTY POPPER}" * 200


def test_a_drawn_key_is_its_owner_s_alone(tmp_path):
    write_random_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    (key,) = load_signing_keys(tmp_path / "key")
    assert len(key) == 64
    with pytest.raises(FileExistsError):
        write_random_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "it has no key"), (b"a" * 32 + b"\nx\n", "key 2 is too short"), (None, "No such")],
)
def test_keys_that_cannot_be_used_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ListingVisionError, match=message):
        load_signing_keys(tmp_path / "key")
