"""Key sets: which keys are used, and how one is fetched."""

import contextlib
import json
import logging
import time

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from serving.auth import jwks
from tests.support.identity_provider import KINDS, create_jwk
from vision.errors import ListingVisionError


def test_only_public_keys_for_signatures_are_used_and_no_secret_is_logged(caplog):
    private = jwt.algorithms.OKPAlgorithm.to_jwk(KINDS["EdDSA"][0], as_dict=True)
    keys = [
        *(create_jwk(kind, kind) for kind in KINDS),
        create_jwk("EdDSA", "encryption", use="enc"),
        create_jwk("EdDSA", "signing", key_ops=["sign"]),
        create_jwk("RS256", "short", rsa.generate_private_key(65537, 1024)),
        create_jwk("RS256", "stronger", alg="RS512"),
        {**private, "kid": "private"},
        {"kty": "oct", "k": "c2VjcmV0IHNlY3JldA", "kid": "secret"},
        {"kty": "quantum", "kid": "future"},
        {**create_jwk("EdDSA", ""), "kid": None},
    ]
    with caplog.at_level(logging.DEBUG):
        found = jwks.parse_key_set(json.dumps({"keys": keys}).encode(), "keys.json")
    assert set(found) == set(KINDS)
    assert "key 'private' is a private key" in caplog.text
    assert "key 'future' is ignored" in caplog.text
    assert "key 'short' is ignored: 1024 bits are too few" in caplog.text
    assert "c2VjcmV0" not in caplog.text
    assert private["d"] not in caplog.text


def test_the_first_key_of_an_id_counts():
    keys = [create_jwk("ES256", "key"), create_jwk("EdDSA", "key")]
    found = jwks.parse_key_set(json.dumps({"keys": keys}).encode(), "keys.json")
    assert found["key"].algorithm_name == "ES256"


def redirect(request):
    request.send_response(302)
    request.send_header("Location", "/elsewhere")
    request.end_headers()


def send_endless(request):
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):
        while True:
            request.wfile.write(b" " * 65536)


def send_slowly(request):
    request.send_response(200)
    request.end_headers()
    with contextlib.suppress(OSError):
        while True:
            request.wfile.write(b" ")
            time.sleep(0.02)


def send_not_found(request):
    request.send_error(404)


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (redirect, "HTTP Error 302"),
        (send_not_found, "HTTP Error 404"),
        (send_endless, "larger than 256 KiB"),
        (send_slowly, "was not received within 0.2 s"),
    ],
)
def test_a_fetch_has_limits(provider, monkeypatch, respond, message):
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.2)
    provider.respond = respond
    with pytest.raises(ListingVisionError, match=message):
        jwks.fetch_key_set(provider.url)


def test_a_file_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_bytes(b" " * (jwks.MAX_BYTES + 1))
    with pytest.raises(ListingVisionError, match="larger than 256 KiB"):
        jwks.read_key_set(path)
