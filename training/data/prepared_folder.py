"""From a plain folder of photos to a manifest that can be trained on, in one step."""

from collections.abc import Callable
from pathlib import Path

from training.data.checks import check_labels
from training.data.folder_importer import import_folder
from training.data.importers import save_dataset
from training.data.splits import carve_calibrate, count_splits, split_manifest
from vision.runtime.wording import format_count

__all__ = ["prepare_folder"]


def prepare_folder(source: Path, output: Path, *, stop: Callable[[], bool] = lambda: False) -> tuple[Path, list[str]]:
    """Import a folder with photos of each class in a folder of its own, and split what is not split.

    A manifest that is there already is left as it is, so that a run on it can be resumed; photos that have been added
    to the folder since are not in it.

    Args:
        source: as for `import_folder`.
        output: folder for `manifest.parquet` and `taxonomy.json`.
        stop: whether to give up, before anything is written.

    Returns:
        The manifest's path, and what was done, in sentences for a person.

    Raises:
        RunStopped: `stop` said so; the same call begins again.
        ManifestError: as `import_folder`, or shares that leave nothing to train on.
    """
    path = output / "manifest.parquet"
    if path.is_file():
        return path, [f"{path} is there from before and is used as it is"]
    imported = import_folder(source, stop=stop)
    notes = [f"left out: {left_out}" for left_out in imported.left_out]
    found = {split for split, (num_photos, _) in count_splits(imported.manifest).items() if num_photos}
    manifest = imported.manifest
    if "val" not in found:
        # A test split that the folder has is kept; without one, ours is the only one there can be.
        test = 0.0 if found else 0.1
        manifest = split_manifest(manifest, test=test, keep=found - {"train"})
        notes.append(f"the folder has no val split: photos of {'train' if found else 'all classes'} were shared out")
    manifest = carve_calibrate(manifest)
    notes += [str(finding) for finding in check_labels(manifest, imported.taxonomy)]
    save_dataset(manifest, imported.taxonomy, output)
    counts = ", ".join(f"{num} {split}" for split, (num, _) in count_splits(manifest).items())
    notes.append(
        f"{path}: {format_count(len(manifest), 'photo')} ({counts}), "
        f"{format_count(len(imported.taxonomy.leaf_ids), 'class')}"
    )
    return path, notes
