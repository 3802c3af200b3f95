"""Signed tokens against a real key server on loopback, and tokens that must never be accepted."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import warnings

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from listing_vision_client import Access
from serving.auth import jwt_verifier
from serving.auth.file_watcher import CHECK_INTERVAL_S
from serving.auth.jwt_verifier import JwtOptions, JwtVerifier
from serving.auth.quota import PhotoQuota
from tests.support.callers import classify, run_secured_gateway, write_token_file
from tests.support.clock import ManualClock
from tests.support.identity_provider import AUDIENCE, ISSUER, KINDS, create_claims, create_jwk, sign_token
from tests.support.waiting import async_wait_until
from vision.errors import ListingVisionError


def create_verifier(source: str, *, cache_path=None, **clocks) -> JwtVerifier:
    return JwtVerifier(JwtOptions(jwks=source, audience=AUDIENCE, issuer=ISSUER, cache_path=cache_path), **clocks)


def identify_callers(verifier: JwtVerifier, *tokens: str) -> list[str | None]:
    async def identify():
        return [await verifier.identify_caller(token) for token in tokens]

    return asyncio.run(identify())


def test_a_gateway_identifies_callers_by_signed_tokens(bundle, provider, tmp_path, monkeypatch):
    # A burst of five photos that takes hours to fill again.
    monkeypatch.setattr(PhotoQuota, "BURST_S", 50_000.0)
    provider.keys = [create_jwk(kind, kind) for kind in KINDS]
    options = {
        "tokens": write_token_file(tmp_path / "tokens", backfill="secret"),
        "jwks": provider.url,
        "jwt_audience": AUDIENCE,
        "jwt_issuer": ISSUER,
        "quota_photos_per_s": 1e-4,
    }

    async def call():
        async with run_secured_gateway(bundle, **options) as address:
            valid = [*(sign_token(kind, kind, sub=f"by-{kind}") for kind in KINDS), "secret"]
            found = [await classify(address, Access(token=token), num_photos=5) for token in valid]
            again = await classify(address, Access(token=sign_token("RS256", "RS256", sub="by-RS256", jti="another")))
            invalid = [sign_token("ES256", "RS256"), sign_token("RS256", "RS256", aud="else"), "nonsense"]
            return found, again, {await classify(address, Access(token=token)) for token in invalid}

    valid, again, invalid = asyncio.run(call())
    assert valid == ["OK"] * 4
    assert again.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'by-RS256'")
    assert invalid == {"UNAUTHENTICATED UNAUTHENTICATED unauthenticated"}
    assert provider.num_requests == 1


def encode_part(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign_hs256(secret: bytes, header: dict) -> str:
    """HS256, which jwt.encode refuses to make of a public key."""
    signed = f"{encode_part(header)}.{encode_part(create_claims())}"
    return f"{signed}.{encode_part(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


PEM = KINDS["RS256"][0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
NOW = int(time.time())
CLAIMS = encode_part(create_claims())
UNKNOWN_KEY = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(65537, 1024)
with warnings.catch_warnings(action="ignore"):  # of the library, which finds it too short as well
    BY_SHORT = sign_token("RS256", "short", key=SHORT)
INVALID_TOKENS = {
    "expired": sign_token(exp=NOW - 100),
    "not valid yet": sign_token(nbf=NOW + 86400),
    "issued tomorrow": sign_token(iat=NOW + 86400),
    "for somebody else": sign_token(aud="billing"),
    "for nobody": sign_token(aud=None),
    "from somebody else": sign_token(iss="https://login.example.evil"),
    "from nobody": sign_token(iss=None),
    "for ever": sign_token(exp=None),
    "of nobody": sign_token(sub=None),
    "of an empty name": sign_token(sub=""),
    "of a name that breaks a log line": sign_token(sub="a\nb"),
    "of a name without end": sign_token(sub="a" * 201),
    "by a stranger's key": sign_token(key=UNKNOWN_KEY),
    "by a key that is not known": sign_token(key_id="key-9"),
    "of no key": sign_token(key_id=None),
    "by another kind of key": sign_token("RS256", "key-1"),
    "unsigned": f"{encode_part({'alg': 'none', 'kid': 'key-1'})}.{CLAIMS}.",
    "signed with a public key as a secret": sign_hs256(PEM, {"alg": "HS256", "kid": "rsa"}),
    "signed with a public key, and says otherwise": sign_hs256(PEM, {"alg": "RS256", "kid": "rsa"}),
    "signed with a secret that stands among the keys": sign_hs256(b"x" * 32, {"alg": "HS256", "kid": "secret"}),
    "by a key for encryption": sign_token("EdDSA", "encryption"),
    "by a key whose private half is published": sign_token("EdDSA", "private"),
    "by a short key": BY_SHORT,
    "by another algorithm than the key's": jwt.encode(create_claims(), KINDS["RS256"][0], "RS512", {"kid": "rsa"}),
    "by an algorithm that is not allowed": jwt.encode(create_claims(), KINDS["RS256"][0], "RS512", {"kid": "stronger"}),
    "with a condition that we do not know": jwt.encode(
        create_claims(), KINDS["ES256"][0], algorithm="ES256", headers={"kid": "key-1", "crit": ["b"], "b": 1}
    ),
    "tampered with": ".".join(
        [sign_token().split(".")[0], encode_part(create_claims(sub="admin")), sign_token().split(".")[2]]
    ),
    "with a name of a key that is none": f"{encode_part({'alg': 'ES256', 'kid': {'a': 1}})}.{CLAIMS}.AA",
    "too deep to read": f"{encode_part(b'[' * 4000)}.{CLAIMS}.AA",
    "too long": sign_token(padding="x" * 9000),
    "no token": "a.b",
    "empty": "",
}


@pytest.fixture(scope="module")
def many_keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    private = jwt.algorithms.OKPAlgorithm.to_jwk(KINDS["EdDSA"][0], as_dict=True)
    keys = [
        create_jwk("ES256", "key-1"),
        create_jwk("RS256", "rsa"),
        create_jwk("EdDSA", "encryption", use="enc"),
        create_jwk("RS256", "short", SHORT),
        create_jwk("RS256", "stronger", alg="RS512"),
        {**private, "kid": "private"},
        {"kty": "oct", "k": encode_part(b"x" * 32), "kid": "secret"},
        {"kty": "quantum", "kid": "future"},
        create_jwk("ES256", "key-1", UNKNOWN_KEY),  # the first of a name counts
        {**create_jwk("EdDSA", ""), "kid": None},
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.mark.parametrize("why", INVALID_TOKENS)
def test_invalid_tokens_are_rejected(many_keys, why):
    verifier = create_verifier(str(many_keys))
    assert identify_callers(verifier, INVALID_TOKENS[why], sign_token(), sign_token("RS256", "rsa")) == [
        None,
        "upload",
        "upload",
    ]


def test_clocks_may_differ_a_little(many_keys):
    late, early = sign_token(exp=int(time.time()) - 10), sign_token(nbf=int(time.time()) + 10)
    assert identify_callers(create_verifier(str(many_keys)), late, early) == ["upload", "upload"]


def test_a_new_key_is_fetched_when_a_token_names_it_and_no_more_often_than_that(provider):
    clock = ManualClock()
    verifier = create_verifier(provider.url, clock=clock)
    new = ec.generate_private_key(ec.SECP256R1())
    provider.keys.append(create_jwk("ES256", "key-2", new))
    by_new = sign_token("ES256", "key-2", key=new)
    # Too soon after the fetch at the start.
    assert identify_callers(verifier, by_new, by_new) == [None, None]
    assert provider.num_requests == 1
    clock.advance(jwt_verifier.MIN_FETCH_INTERVAL_S)
    invented = [sign_token(key_id=f"made-up-{i}") for i in range(20)]
    assert identify_callers(verifier, *invented, by_new, sign_token()) == [None] * 20 + ["upload"] * 2
    assert provider.num_requests == 2


def test_many_calls_wait_for_one_fetch(provider):
    clock = ManualClock()
    verifier = create_verifier(provider.url, clock=clock)
    new = ec.generate_private_key(ec.SECP256R1())
    provider.keys.append(create_jwk("ES256", "key-2", new))
    clock.advance(jwt_verifier.MIN_FETCH_INTERVAL_S)
    token = sign_token("ES256", "key-2", key=new)

    async def identify():
        return await asyncio.gather(*(verifier.identify_caller(token) for _ in range(10)))

    assert asyncio.run(identify()) == ["upload"] * 10
    assert provider.num_requests == 2


def test_a_withdrawn_key_is_valid_until_the_keys_are_fetched_again(provider, caplog):
    caplog.set_level("INFO")
    clock = ManualClock()
    verifier = create_verifier(provider.url, clock=clock)
    old = sign_token()
    assert identify_callers(verifier, old) == ["upload"]
    provider.keys = [create_jwk("ES256", "key-2")]
    assert identify_callers(verifier, old) == ["upload"]
    clock.advance(jwt_verifier.KEY_SET_TTL_S)

    async def identify():
        # A call whose key is known does not wait for the fetch.
        first = await verifier.identify_caller(old)
        await async_wait_until(lambda: "has changed: 1 keys" in caplog.text, "the keys are fetched")
        return first, await verifier.identify_caller(old)

    assert asyncio.run(identify()) == ("upload", None)


def test_a_provider_that_is_away_changes_nothing(provider, tmp_path, caplog):
    clock = ManualClock()
    cache_path = tmp_path / "jwks.json"
    verifier = create_verifier(provider.url, cache_path=cache_path, clock=clock)
    provider.stop()
    clock.advance(jwt_verifier.KEY_SET_TTL_S)
    tokens = [sign_token(), sign_token(key_id="unknown"), sign_token()]
    assert identify_callers(verifier, *tokens) == ["upload", None, "upload"]
    assert "cannot be fetched" in caplog.text
    assert "the old keys stay" in caplog.text
    # A process that starts now uses the keys that another one has fetched.
    assert identify_callers(create_verifier(provider.url, cache_path=cache_path), sign_token()) == ["upload"]
    with pytest.raises(ListingVisionError, match="cannot be fetched"):
        create_verifier(provider.url, cache_path=tmp_path / "nothing")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"keys": 7}', b'{"keys": []}', b'{"keys": [1]}', b"[" * 99999])
def test_a_response_that_is_not_a_key_set_changes_nothing(provider, caplog, body):
    clock = ManualClock()
    verifier = create_verifier(provider.url, clock=clock)

    def send_body(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(body)

    provider.respond = send_body
    clock.advance(jwt_verifier.KEY_SET_TTL_S)

    async def identify():
        await verifier.identify_caller(sign_token())
        await async_wait_until(lambda: "the old keys stay" in caplog.text, "the keys are fetched")
        return await verifier.identify_caller(sign_token())

    assert asyncio.run(identify()) == "upload"


@pytest.mark.parametrize(
    "url", ["http://login.example/keys", "https://user:secret@login.example/keys", "ftp://a/b", "file:///etc/keys"]
)
def test_keys_come_over_https_alone(url):
    with pytest.raises(ListingVisionError, match="give an https URL") as refused:
        create_verifier(url)
    assert "secret" not in str(refused.value)


def test_a_file_of_keys_is_reloaded_and_a_broken_one_changes_nothing(tmp_path, caplog):
    clock = ManualClock()
    path = tmp_path / "jwks.json"
    with pytest.raises(ListingVisionError, match="cannot be read: No such file"):
        create_verifier(str(path))
    path.write_text(json.dumps({"keys": [create_jwk("ES256", "key-1")]}))
    verifier = create_verifier(str(path), clock=clock)
    assert identify_callers(verifier, sign_token()) == ["upload"]
    path.write_text('{"keys"')
    clock.advance(CHECK_INTERVAL_S)
    assert identify_callers(verifier, sign_token()) == ["upload"]
    assert "is not a JSON Web Key Set: JSONDecodeError; the old keys stay" in caplog.text
    path.write_text(json.dumps({"keys": [create_jwk("EdDSA", "key-22")]}))
    clock.advance(CHECK_INTERVAL_S)
    assert identify_callers(verifier, sign_token(), sign_token("EdDSA", "key-22")) == [None, "upload"]


@pytest.fixture
def verifications(monkeypatch):
    """A list that grows with each signature that is verified."""
    verified = []
    real = jwt.decode
    monkeypatch.setattr(
        jwt, "decode", lambda token, *rest, **named: verified.append(token) or real(token, *rest, **named)
    )
    return verified


def test_a_valid_token_is_verified_once_and_again_when_it_may_have_expired(many_keys, verifications):
    clock = ManualClock(time.time())
    verifier = create_verifier(str(many_keys), wall_clock=clock)
    short, long = sign_token(exp=int(clock.now_s) + 10), sign_token(jti="long")
    identify_callers(verifier, *[short, long] * 5)
    assert verifications == [short, long]
    clock.advance(10 + jwt_verifier.LEEWAY_S + 1)
    identify_callers(verifier, short, long)
    assert verifications == [short, long, short]
    clock.advance(jwt_verifier.TOKEN_CACHE_TTL_S)
    identify_callers(verifier, long)
    assert verifications == [short, long, short, long]


def test_only_the_latest_tokens_are_cached(many_keys, verifications, monkeypatch):
    monkeypatch.setattr(jwt_verifier, "MAX_CACHED_TOKENS", 3)
    verifier = create_verifier(str(many_keys))
    tokens = [sign_token(jti=str(i)) for i in range(6)]
    assert identify_callers(verifier, *tokens) == ["upload"] * 6
    identify_callers(verifier, *tokens[3:])
    assert verifications == tokens
    identify_callers(verifier, *tokens[:3])
    assert verifications == [*tokens, *tokens[:3]]
