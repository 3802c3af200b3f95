"""Signed tokens against a real key server on loopback, and what must never be believed."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import logging
import threading
import time
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from serving.auth import jwks, jwt_verifier
from serving.auth.jwt_verifier import JwtOptions, JwtVerifier
from serving.client import Access
from tests.serving.auth.test_interceptor import classify_status, run_gateway, token_file
from vision.errors import ListingVisionError

AUDIENCE, ISSUER = "listing-vision", "https://login.example"
KINDS = {
    "RS256": (rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm),
}


def public(kind: str, key_id: str, key=None, **more) -> dict:
    private, algorithm = KINDS[kind]
    described = algorithm.to_jwk((key or private).public_key(), as_dict=True)
    return {**described, "kid": key_id, "use": "sig", **more}


def claims(**changed) -> dict:
    now = int(time.time())
    whole = {"sub": "upload", "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + 600, **changed}
    return {name: value for name, value in whole.items() if value is not None}


def token(kind: str = "ES256", key_id: str | None = "key-1", key=None, **changed) -> str:
    headers = {} if key_id is None else {"kid": key_id}
    return jwt.encode(claims(**changed), key or KINDS[kind][0], algorithm=kind, headers=headers)


def encode(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Provider:
    """Answers GET with the keys that it has, and counts how often."""

    def __init__(self, *keys: dict, port: int = 0):
        self.keys, self.num_asked, self.answer = list(keys), 0, None
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.num_asked += 1
                if provider.answer:
                    return provider.answer(self)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"keys": provider.keys}).encode())

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def provider():
    started = Provider(public("ES256", "key-1"))
    yield started
    with contextlib.suppress(OSError):
        started.stop()


def create_verifier(source: str, *, cache_path=None, **options) -> JwtVerifier:
    return JwtVerifier(JwtOptions(jwks=source, audience=AUDIENCE, issuer=ISSUER, cache_path=cache_path), **options)


def callers(verifier: JwtVerifier, *each: str) -> list[str | None]:
    async def ask():
        return [await verifier.identify_caller(one) for one in each]

    return asyncio.run(ask())


def test_a_gateway_tells_callers_by_signed_tokens(bundle, provider, tmp_path):
    provider.keys = [public(kind, kind) for kind in KINDS]
    options = {
        "tokens": token_file(tmp_path / "tokens", backfill="secret"),
        "jwks": provider.url,
        "jwt_audience": AUDIENCE,
        "jwt_issuer": ISSUER,
        "quota_photos_per_s": 1.0,
    }

    async def calls():
        async with run_gateway(bundle, **options) as (server, address):
            server._gateway._quotas._clock = lambda: 0.0
            good = [token(kind, kind, sub=f"by-{kind}") for kind in KINDS]
            found = [await classify_status(address, Access(token=each), photos=5) for each in [*good, "secret"]]
            again = await classify_status(address, Access(token=token("RS256", "RS256", sub="by-RS256", jti="another")))
            wrong = [token("ES256", "RS256"), token("RS256", "RS256", aud="else"), "nonsense"]
            return found, again, {await classify_status(address, Access(token=each)) for each in wrong}

    good, again, wrong = asyncio.run(calls())
    assert good == ["answered"] * 4
    assert again.startswith("RESOURCE_EXHAUSTED QUOTA_EXCEEDED caller 'by-RS256'")
    assert wrong == {"UNAUTHENTICATED UNAUTHENTICATED unauthenticated"}
    assert provider.num_asked == 1


def sign_hs256(secret: bytes, header: dict) -> str:
    """HS256, which jwt.encode refuses to make of a public key."""
    signed = f"{encode(header)}.{encode(claims())}"
    return f"{signed}.{encode(hmac.digest(secret, signed.encode(), hashlib.sha256))}"


PEM = KINDS["RS256"][0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
NOW = int(time.time())
UNKNOWN_KEY = ec.generate_private_key(ec.SECP256R1())
SHORT = rsa.generate_private_key(65537, 1024)
with warnings.catch_warnings(action="ignore"):  # of the library, which finds it too short as well
    BY_SHORT = token("RS256", "short", key=SHORT)
REJECTED_TOKENS = {
    "expired": token(exp=NOW - 100),
    "not valid yet": token(nbf=NOW + 86400),
    "issued tomorrow": token(iat=NOW + 86400),
    "for somebody else": token(aud="billing"),
    "for nobody": token(aud=None),
    "from somebody else": token(iss="https://login.example.evil"),
    "from nobody": token(iss=None),
    "for ever": token(exp=None),
    "of nobody": token(sub=None),
    "of an empty name": token(sub=""),
    "of a name that breaks a log line": token(sub="a\nb"),
    "of a name without end": token(sub="a" * 201),
    "by a stranger's key": token(key=UNKNOWN_KEY),
    "by a key that is not known": token(key_id="key-9"),
    "of no key": token(key_id=None),
    "by another kind of key": token("RS256", "key-1"),
    "unsigned": f"{encode({'alg': 'none', 'kid': 'key-1'})}.{encode(claims())}.",
    "signed with a public key as a secret": sign_hs256(PEM, {"alg": "HS256", "kid": "rsa"}),
    "signed with a public key, and says otherwise": sign_hs256(PEM, {"alg": "RS256", "kid": "rsa"}),
    "signed with a secret that stands among the keys": sign_hs256(b"x" * 32, {"alg": "HS256", "kid": "secret"}),
    "by a key for encryption": token("EdDSA", "encryption"),
    "by a key whose private half is published": token("EdDSA", "private"),
    "by a short key": BY_SHORT,
    "by another algorithm than the key's": jwt.encode(claims(), KINDS["RS256"][0], "RS512", {"kid": "rsa"}),
    "by an algorithm that is not allowed": jwt.encode(claims(), KINDS["RS256"][0], "RS512", {"kid": "stronger"}),
    "with a condition that we do not know": jwt.encode(
        claims(), KINDS["ES256"][0], algorithm="ES256", headers={"kid": "key-1", "crit": ["b"], "b": 1}
    ),
    "tampered with": ".".join([token().split(".")[0], encode(claims(sub="admin")), token().split(".")[2]]),
    "with a name of a key that is none": f"{encode({'alg': 'ES256', 'kid': {'a': 1}})}.{encode(claims())}.AA",
    "too deep to read": f"{encode(b'[' * 4000)}.{encode(claims())}.AA",
    "too long": token(padding="x" * 9000),
    "no token": "a.b",
    "empty": "",
}


@pytest.fixture(scope="module")
def many_keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    private = jwt.algorithms.OKPAlgorithm.to_jwk(KINDS["EdDSA"][0], as_dict=True)
    keys = [
        public("ES256", "key-1"),
        public("RS256", "rsa"),
        public("EdDSA", "encryption", use="enc"),
        public("RS256", "short", SHORT),
        public("RS256", "stronger", alg="RS512"),
        {**private, "kid": "private"},
        {"kty": "oct", "k": encode(b"x" * 32), "kid": "secret"},
        {"kty": "quantum", "kid": "future"},
        public("ES256", "key-1", UNKNOWN_KEY),  # the first of a name counts
        {**public("EdDSA", ""), "kid": None},
    ]
    path.write_text(json.dumps({"keys": keys}))
    return path


@pytest.mark.parametrize("why", REJECTED_TOKENS)
def test_what_is_not_believed(many_keys, why):
    verifier = create_verifier(str(many_keys))
    assert callers(verifier, REJECTED_TOKENS[why], token(), token("RS256", "rsa")) == [None, "upload", "upload"]


def test_clocks_may_differ_a_little(many_keys):
    late, early = token(exp=int(time.time()) - 10), token(nbf=int(time.time()) + 10)
    assert callers(create_verifier(str(many_keys)), late, early) == ["upload", "upload"]


def test_a_secret_among_the_keys_is_not_logged(many_keys, caplog):
    with caplog.at_level(logging.DEBUG):
        create_verifier(str(many_keys))
    assert "key 'private' is a private key" in caplog.text
    assert "key 'future' is ignored" in caplog.text
    assert encode(b"x" * 32) not in caplog.text


def test_a_new_key_is_fetched_when_a_token_names_it_and_no_more_often_than_that(provider, monkeypatch):
    verifier = create_verifier(provider.url)
    new = ec.generate_private_key(ec.SECP256R1())
    provider.keys.append(public("ES256", "key-2", new))
    by_new = token("ES256", "key-2", key=new)
    # Too soon after the fetch at the start.
    assert callers(verifier, by_new, by_new) == [None, None]
    assert provider.num_asked == 1
    verifier._keys._last_fetch_s -= jwt_verifier.MIN_FETCH_INTERVAL_S
    many = callers(verifier, *[token(key_id=f"made-up-{i}") for i in range(20)], by_new, token())
    assert many == [None] * 20 + ["upload"] * 2
    assert provider.num_asked == 2


def test_many_calls_wait_for_one_fetch(provider):
    verifier = create_verifier(provider.url)
    new = ec.generate_private_key(ec.SECP256R1())
    provider.keys.append(public("ES256", "key-2", new))
    verifier._keys._last_fetch_s -= jwt_verifier.MIN_FETCH_INTERVAL_S

    async def together():
        return await asyncio.gather(*(verifier.identify_caller(token("ES256", "key-2", key=new)) for _ in range(10)))

    assert asyncio.run(together()) == ["upload"] * 10
    assert provider.num_asked == 2


def test_a_key_that_was_withdrawn_is_believed_until_the_keys_are_fetched_again(provider):
    verifier = create_verifier(provider.url)
    old = token()
    assert callers(verifier, old) == ["upload"]
    provider.keys = [public("ES256", "key-2")]
    assert callers(verifier, old) == ["upload"]

    async def later():
        verifier._keys._last_fetch_s -= jwt_verifier.KEY_SET_TTL_S
        # Nobody waits for what is only refreshed.
        first = await verifier.identify_caller(old)
        await verifier._keys._fetch_task
        return first, await verifier.identify_caller(old)

    assert asyncio.run(later()) == ("upload", None)


def test_a_provider_that_is_away_changes_nothing(provider, tmp_path, caplog):
    kept = tmp_path / "jwks.json"
    verifier = create_verifier(provider.url, cache_path=kept)
    provider.stop()
    verifier._keys._last_fetch_s -= jwt_verifier.KEY_SET_TTL_S
    assert callers(verifier, token(), token(key_id="unknown"), token()) == ["upload", None, "upload"]
    assert "cannot be fetched" in caplog.text
    assert "the old keys stay" in caplog.text
    # A process that starts now has the keys that another one fetched.
    assert callers(create_verifier(provider.url, cache_path=kept), token()) == ["upload"]
    with pytest.raises(ListingVisionError, match="cannot be fetched"):
        create_verifier(provider.url, cache_path=tmp_path / "nothing")


@pytest.mark.parametrize("answer", [b"", b"[]", b"{", b'{"keys": 7}', b'{"keys": []}', b'{"keys": [1]}', b"[" * 99999])
def test_an_answer_that_is_no_key_set_changes_nothing(provider, caplog, answer):
    verifier = create_verifier(provider.url)

    def send_broken_keys(request):
        request.send_response(200)
        request.end_headers()
        request.wfile.write(answer)

    provider.answer = send_broken_keys
    verifier._keys._last_fetch_s -= jwt_verifier.KEY_SET_TTL_S

    async def later():
        await verifier.identify_caller(token())
        await verifier._keys._fetch_task
        return await verifier.identify_caller(token())

    assert asyncio.run(later()) == "upload"
    assert "the old keys stay" in caplog.text


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
    ("answer", "said"),
    [
        (redirect, "HTTP Error 302"),
        (send_not_found, "HTTP Error 404"),
        (send_endless, "larger than 256 KiB"),
        (send_slowly, "was not received within 0.2 s"),
    ],
)
def test_a_fetch_has_limits(provider, monkeypatch, answer, said):
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.2)
    provider.answer = answer
    with pytest.raises(ListingVisionError, match=said):
        jwks.fetch(provider.url)


@pytest.mark.parametrize(
    "url", ["http://login.example/keys", "https://user:secret@login.example/keys", "ftp://a/b", "file:///etc/keys"]
)
def test_keys_come_over_https_alone(url):
    with pytest.raises(ListingVisionError, match="give an https URL") as refused:
        create_verifier(url)
    assert "secret" not in str(refused.value)


def test_a_file_of_keys_is_read_again_and_a_broken_one_changes_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("serving.auth.file_watcher.CHECK_INTERVAL_S", 0.0)
    path = tmp_path / "jwks.json"
    with pytest.raises(ListingVisionError, match="cannot be read: No such file"):
        create_verifier(str(path))
    path.write_text(json.dumps({"keys": [public("ES256", "key-1")]}))
    verifier = create_verifier(str(path))
    assert callers(verifier, token()) == ["upload"]
    path.write_text('{"keys"')
    assert callers(verifier, token()) == ["upload"]
    assert "is not a JSON Web Key Set: JSONDecodeError; the old keys stay" in caplog.text
    path.write_text(json.dumps({"keys": [public("EdDSA", "key-22")]}))
    assert callers(verifier, token(), token("EdDSA", "key-22")) == [None, "upload"]


def test_a_good_token_is_computed_once_and_again_when_it_may_have_expired(many_keys, monkeypatch):
    now = [time.time()]
    verifier = create_verifier(str(many_keys), wall_clock=lambda: now[0])
    computed = []
    real = jwt.decode
    monkeypatch.setattr(jwt, "decode", lambda *given, **named: computed.append(1) or real(*given, **named))
    short, long = token(exp=int(now[0]) + 10), token(jti="long")
    callers(verifier, *[short, long] * 5)
    assert len(computed) == 2
    now[0] += 10 + jwt_verifier.LEEWAY_S + 1
    callers(verifier, short, long)
    assert len(computed) == 3
    now[0] += jwt_verifier.TOKEN_CACHE_TTL_S
    callers(verifier, long)
    assert len(computed) == 4


def test_so_many_tokens_are_remembered_and_no_more(many_keys, monkeypatch):
    monkeypatch.setattr(jwt_verifier, "MAX_CACHED_TOKENS", 3)
    verifier = create_verifier(str(many_keys))
    assert callers(verifier, *(token(jti=str(i)) for i in range(6))) == ["upload"] * 6
    assert len(verifier._token_cache) == 3
