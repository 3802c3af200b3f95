"""Signatures of bundle folders in the format of OpenSSF Model Signing, with an operator's own key, offline.

Needs the extra `signing`, which is imported only where a signature is made or required.
"""

import base64
import json
from pathlib import Path
from typing import Any

from vision.errors import BundleError
from vision.runtime.files import replace_file

__all__ = ["SIGNATURE_FILE", "sign_folder", "verify_signature"]

SIGNATURE_FILE = "model.sig"
"""In the bundle; it covers every other file of the folder, by name and hash."""


def sign_folder(folder: Path, private_key: Path) -> None:
    """Write `model.sig`; an earlier one is replaced.

    Args:
        folder: whose files are signed.
        private_key: PEM file of an elliptic-curve key (P-256, P-384 or P-521), not encrypted.

    Raises:
        BundleError: the key cannot be used, or the folder has a symbolic link.
        OSError: the key cannot be read, or the signature cannot be written.
    """
    from model_signing import signing

    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(private_key, "private", error) from error
    config.set_hashing_config(_create_hashing())
    try:
        with replace_file(folder / SIGNATURE_FILE) as temporary:
            config.sign(folder, temporary)
    except ValueError as error:
        raise BundleError(f"bundle {folder} cannot be signed: {error}") from error


def verify_signature(folder: Path, public_key: Path) -> None:
    """Check that a folder has exactly the files that were signed, each unchanged.

    Args:
        folder: a bundle.
        public_key: PEM file of the public key.

    Raises:
        BundleError: there is no signature, it is not by this key, or a file was altered, added or removed (by name).
        OSError: the key cannot be read.
    """
    from cryptography.exceptions import InvalidSignature
    from model_signing import verifying

    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError, AttributeError) as error:
        raise _unusable_key(public_key, "public", error) from error
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise BundleError(f"bundle {folder} has no {SIGNATURE_FILE}; sign it with `listing-vision bundle sign`")
    try:
        _require_canonical_base64(path)
        config.set_hashing_config(_create_hashing()).verify(folder, path)
    # The library raises all of these for a signature that was altered.
    except (ValueError, KeyError, TypeError, IndexError, InvalidSignature) as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        raise BundleError(
            f"bundle {folder}: {SIGNATURE_FILE} does not hold with the key {public_key}: {detail}; copy the bundle "
            "again from where it was signed"
        ) from error


def _create_hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _require_canonical_base64(path: Path) -> None:
    """Base64 has unused bits at its end, which readers ignore: two texts for the same bytes."""
    envelope = json.loads(path.read_bytes())["dsseEnvelope"]
    for text in (envelope["payload"], *(one["sig"] for one in envelope["signatures"])):
        if base64.b64encode(base64.b64decode(text)).decode() != text:
            raise ValueError("its base64 was altered")


def _unusable_key(path: Path, kind: str, error: Exception) -> BundleError:
    return BundleError(
        f"{path} is no PEM file of a {kind} elliptic-curve key (P-256, P-384 or P-521, not encrypted): {error}; "
        "docs/deployment.md says how to make a pair"
    )
