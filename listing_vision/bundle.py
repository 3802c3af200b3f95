"""The verbs `bundle sign`, `bundle verify`, `bundle push` and `bundle pull`."""

from pathlib import Path
from typing import Annotated

import typer

from vision.runtime.cli import create_cli_app

__all__ = ["bundle_app"]

bundle_app = create_cli_app(
    "Sign model bundles and verify signatures (extra `signing`); push to and pull from registries."
)

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


@bundle_app.command()
def push(
    bundle: _Bundle,
    target: Annotated[
        str,
        typer.Argument(help="models:/NAME of MLflow's registry, hf://OWNER/NAME of the Hugging Face Hub, or a folder."),
    ],
) -> None:
    """Copy a bundle to a model registry: MLflow's, the Hugging Face Hub, or a folder in the Hub's layout.

    MLflow's registry is where MLFLOW_TRACKING_URI says. A repository of the Hub that is new is private. Needs the extra
    `mlflow` or `hub`.

    Example: listing-vision bundle push bundles/grocery models:/grocery
    """
    from listing_vision.registry import push_bundle

    pushed = push_bundle(bundle, target)
    typer.echo(f"{bundle} is {pushed}; next: listing-vision bundle pull {pushed} --output BUNDLE")


@bundle_app.command()
def pull(
    source: Annotated[
        str,
        typer.Argument(help="models:/NAME/VERSION or models:/NAME@ALIAS, hf://OWNER/NAME[@REVISION], or a folder."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Folder of the bundle; must not exist.")],
    key: Annotated[Path | None, typer.Option(help="PEM file of the public key that must have signed it.")] = None,
) -> None:
    """Copy a bundle from a model registry and check every file of it.

    Example: listing-vision bundle pull models:/grocery/3 --output bundles/grocery
    """
    from listing_vision.registry import pull_bundle

    bundle = pull_bundle(source, output, public_key=key)
    typer.echo(f"bundle {output}: {bundle.info.model_name} {bundle.info.model_version}")
    typer.echo(f"next: listing-vision serve {output}")
