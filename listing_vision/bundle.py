"""The verbs `bundle sign` and `bundle verify`."""

from pathlib import Path
from typing import Annotated

import typer

from vision.runtime.cli import create_cli_app

__all__ = ["bundle_app"]

bundle_app = create_cli_app("Sign a model bundle with your own key, and verify a signature. Needs the extra `signing`.")

_Bundle = Annotated[Path, typer.Argument(help="A model bundle.")]


@bundle_app.command()
def sign(
    bundle: _Bundle,
    key: Annotated[Path, typer.Option(help="PEM file of a private elliptic-curve key, not encrypted.")],
) -> None:
    """Write attestation.json (the guarantees and their evidence) and model.sig, which covers every file, into a bundle.

    Example: listing-vision bundle sign bundles/grocery --key signing-key.pem
    """
    from vision.attestation import ATTESTATION_FILE, sign_bundle
    from vision.bundle_signature import SIGNATURE_FILE

    signed = sign_bundle(bundle, key)
    typer.echo(f"{bundle}: {signed.release} is signed; written: {ATTESTATION_FILE}, {SIGNATURE_FILE}")


@bundle_app.command()
def verify(bundle: _Bundle, key: Annotated[Path, typer.Option(help="PEM file of the public key.")]) -> None:
    """Check that a bundle has exactly the files that were signed with the key, each unchanged; exits 1 if not.

    Example: listing-vision bundle verify bundles/grocery --key signing-key.pub
    """
    from vision.bundle import load_bundle

    loaded = load_bundle(bundle, public_key=key)
    typer.echo(f"{bundle}: {loaded.release} is what was signed with {key}")
