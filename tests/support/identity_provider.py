"""A provider of signed tokens on loopback: its keys, and tokens that they sign."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

AUDIENCE, ISSUER = "listing-vision", "https://login.example"
KINDS = {
    "RS256": (rsa.generate_private_key(65537, 2048), jwt.algorithms.RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), jwt.algorithms.OKPAlgorithm),
}
"""By algorithm: the provider's own private key, and how it is written as JSON."""


def create_jwk(kind: str, key_id: str, key=None, **more) -> dict:
    """A public key as an entry of a key set; by default the provider's own of that kind."""
    private, algorithm = KINDS[kind]
    described = algorithm.to_jwk((key or private).public_key(), as_dict=True)
    return {**described, "kid": key_id, "use": "sig", **more}


def create_claims(**changed) -> dict:
    """Valid claims with changes; None removes one."""
    now = int(time.time())
    claims = {"sub": "upload", "aud": AUDIENCE, "iss": ISSUER, "iat": now, "exp": now + 600, **changed}
    return {name: value for name, value in claims.items() if value is not None}


def sign_token(kind: str = "ES256", key_id: str | None = "key-1", key=None, **changed) -> str:
    headers = {} if key_id is None else {"kid": key_id}
    return jwt.encode(create_claims(**changed), key or KINDS[kind][0], algorithm=kind, headers=headers)


class IdentityProvider:
    """Responds to GET with its keys, or as `respond` does, and counts the requests."""

    def __init__(self, *keys: dict) -> None:
        self.keys, self.num_requests, self.respond = list(keys), 0, None
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                provider.num_requests += 1
                if provider.respond:
                    return provider.respond(self)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"keys": provider.keys}).encode())

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
