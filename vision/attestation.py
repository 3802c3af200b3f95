"""Sign a bundle together with an attestation: what its guarantees are, and what they were certified on."""

import json
from pathlib import Path
from typing import Any

from vision.bundle import Bundle, load_bundle
from vision.bundle_signature import SIGNATURE_FILE, sign_folder
from vision.calibration import FieldGuarantee
from vision.errors import BundleError
from vision.runtime.files import compute_sha256, write_atomically

__all__ = ["ATTESTATION_FILE", "build_attestation", "sign_bundle"]

ATTESTATION_FILE = "attestation.json"
"""In the bundle, and signed with it: an in-toto statement."""
PREDICATE_TYPE = "urn:listing-vision:guarantees:v1"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


def sign_bundle(folder: Path, private_key: Path) -> Bundle:
    """Check a bundle, write its attestation, and sign both; an earlier signature is replaced.

    Raises:
        BundleError: the bundle is incomplete or altered, has a file that is no part of one, or the key cannot be used.
        OSError: the key cannot be read, or the folder cannot be written to.
    """
    bundle = load_bundle(folder)
    known = {"manifest.json", *bundle.files, ATTESTATION_FILE, SIGNATURE_FILE}
    if unknown := sorted(path.name for path in folder.iterdir() if path.name not in known):
        raise BundleError(f"bundle {folder} has files that are no part of one: {', '.join(unknown)}; remove them")
    write_atomically(folder / ATTESTATION_FILE, json.dumps(build_attestation(bundle), indent=1) + "\n")
    sign_folder(folder, private_key)
    for name in (ATTESTATION_FILE, SIGNATURE_FILE):
        (folder / name).chmod((folder / "manifest.json").stat().st_mode & 0o777)
    return bundle


def build_attestation(bundle: Bundle) -> dict[str, Any]:
    """Return an in-toto statement about the files of a bundle: its versions, guarantees and their evidence."""
    info, calibration = bundle.info, bundle.calibration
    return {
        "_type": _STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": compute_sha256(bundle.folder / name)}}
            for name in ("manifest.json", *bundle.files)
        ],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "model_name": info.model_name,
            "model_version": info.model_version,
            "taxonomy_version": info.taxonomy_version,
            "calibration_version": bundle.calibration_version,
            "certified_for": dict(calibration.certifies),
            "failure_probability": calibration.total_delta,
            "guarantees": [_describe_guarantee(field) for field in calibration.fields],
            "training": dict(info.training),
        },
    }


def _describe_guarantee(field: FieldGuarantee) -> dict[str, Any]:
    """Return the guarantee of one field; probabilities and shares in [0, 1], counts of listings."""
    return {
        "field": field.name,
        "precision": 1 - field.alpha,
        "failure_probability": field.delta,
        "threshold": field.threshold,
        "precision_bound": None if field.bound is None else 1 - field.bound,
        "counted_on": "hidden listings" if field.decided_by_outcomes else "calibration listings",
        "num_listings": field.num_listings,
        "num_filled": field.num_filled,
        "num_errors": field.num_errors,
        "uncertified_reason": field.uncertified_reason or None,
    }
