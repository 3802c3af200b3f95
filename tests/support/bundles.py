"""Bundles that were changed after they were sealed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from vision.bundle import Bundle, compute_digest, load_bundle, seal_bundle
from vision.images import Preprocessing
from vision.runtime.files import compute_sha256

VERSION_0_1 = Path(__file__).resolve().parents[1] / "data" / "version_0_1"
"""A bundle and a run that version 0.1.0 wrote."""


def copy_version_0_1_bundle(folder: Path) -> Path:
    """Copy the bundle of version 0.1.0 as if the decoder of today had made its pixels, which is refused otherwise."""
    copied = shutil.copytree(VERSION_0_1 / "bundle", folder / "bundle")
    manifest = json.loads((copied / "manifest.json").read_text())
    preprocessing = Preprocessing(input_px=manifest["preprocessing"]["input_px"])
    calibration = json.loads((copied / "calibration.json").read_text())
    calibration["certifies"]["preprocessing"] = preprocessing.fingerprint()
    (copied / "calibration.json").write_text(json.dumps(calibration))
    hashes = manifest["sha256"] | {"calibration.json": compute_sha256(copied / "calibration.json")}
    change_manifest(copied, preprocessing=dataclasses.asdict(preprocessing), sha256=hashes)
    return copied


def change_manifest(folder: Path, **changes: Any) -> None:
    """Write other values, as if the bundle had been sealed with them; None removes one."""
    path = folder / "manifest.json"
    raw = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    raw.pop("manifest_sha256", None)
    path.write_text(json.dumps(raw | {"manifest_sha256": compute_digest(raw)}))


def copy_certified_for(bundle: Bundle, folder: Path, backend: str, *, threshold: float = 0.5) -> Path:
    """Return a copy of the bundle whose fields are filled from a threshold on, by that backend."""
    shutil.copytree(bundle.folder, folder)
    path = folder / "calibration.json"
    raw = json.loads(path.read_text())
    raw["certifies"]["backend"] = backend
    for field in raw["fields"]:
        field["threshold"] = threshold
    path.write_text(json.dumps(raw))
    seal_bundle(folder, bundle.info)
    assert load_bundle(folder).calibration.field("brand").threshold == threshold
    return folder
