"""Bundles that were changed after they were sealed."""

import json
from pathlib import Path
from typing import Any

from vision.bundle import compute_digest


def change_manifest(folder: Path, **changes: Any) -> None:
    """Write other values, as if the bundle had been sealed with them; None removes one."""
    path = folder / "manifest.json"
    raw = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    raw.pop("manifest_sha256", None)
    path.write_text(json.dumps(raw | {"manifest_sha256": compute_digest(raw)}))
