"""Features for stages that train heads_on_features, made once and shared out over the ranks."""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from training.inference.features import FeatureExtraction
from training.trainer.distributed import Ranks
from vision.errors import ManifestError
from vision.images import Preprocessing
from vision.manifest import Manifest
from vision.model import ListingClassifier
from vision.runtime.progress import Progress

__all__ = ["ProbeFeatures", "make_probe_features"]


@dataclass(frozen=True)
class ProbeFeatures:
    """Folders for `training.inference.features.load_features`."""

    train: Mapping[int, Path]
    """By `photo_px`; every photo of the train split."""
    val: Path | None
    """None without a stage that trains heads_on_features."""


def make_probe_features(
    model: ListingClassifier,
    train: Manifest,
    train_sizes_px: Set[int],
    val: Manifest,
    val_px: int,
    *,
    cache: Path,
    ranks: Ranks,
    stop: Callable[[], bool],
) -> ProbeFeatures | None:
    """Features of both splits' photos; without a size of training photos, none.

    Every rank must call it, with a `cache` that all ranks see. What is made is saved a batch at a time.

    Args:
        model: on the rank's device; left in evaluation mode.
        train: every photo of it must be usable.
        train_sizes_px: sides at which photos of train are shown to the model.
        val: unusable photos of it are left out.
        val_px: side at which photos of val are.
        cache: folder of the features.
        ranks: that share the work.
        stop: whether this rank was asked to stop.

    Returns:
        None if a rank was asked to stop: the same call resumes.

    Raises:
        ManifestError: photos of train, or all of val, that cannot be used; they are read again by the next call.
    """
    folders: list[Path] = []
    wanted = [(train, size, True) for size in sorted(train_sizes_px)]
    for manifest, photo_px, all_needed in [*wanted, (val, val_px, False)] if wanted else []:
        folder = _make_features(model, manifest, photo_px, all_needed=all_needed, cache=cache, ranks=ranks, stop=stop)
        if folder is None:
            return None
        folders.append(folder)
    sizes = sorted(train_sizes_px)
    return ProbeFeatures(dict(zip(sizes, folders, strict=False)), folders[-1] if folders else None)


def _make_features(
    model: ListingClassifier,
    manifest: Manifest,
    photo_px: int,
    *,
    all_needed: bool,
    cache: Path,
    ranks: Ranks,
    stop: Callable[[], bool],
) -> Path | None:
    extraction = FeatureExtraction(
        model, manifest, Preprocessing(input_px=photo_px), cache=cache, device=str(ranks.device)
    )
    missing = ranks.gather(extraction.list_missing())[0]
    rounds = [missing[begin : begin + ranks.world_size] for begin in range(0, len(missing), ranks.world_size)]
    mine = [shared[ranks.rank] for shared in rounds if ranks.rank < len(shared)]
    made = extraction.extract(mine)
    done = len(manifest) - extraction.count_photos(missing)
    with Progress(f"features at {photo_px} px", len(manifest), done=done, enabled=ranks.is_first) as progress:
        for shared in rounds:
            # Asked in every round on all ranks, so that all of them stop in the same one.
            if ranks.sum([float(stop())])[0]:
                made.close()
                return None
            if ranks.rank < len(shared):
                next(made)
            progress.advance(extraction.count_photos(shared))
    ranks.barrier()
    problems = ranks.gather(_combine(extraction, all_needed=all_needed) if ranks.is_first else ())[0]
    if problems:
        raise ManifestError("a linear probe needs every training photo, and these cannot be used:", problems)
    return extraction.folder


def _combine(extraction: FeatureExtraction, *, all_needed: bool) -> tuple[str, ...]:
    """Join the features, or return what is wrong with photos that are needed and cannot be used."""
    if extraction.folder.is_dir():
        return ()
    problems = extraction.drop_unusable() if all_needed else ()
    if not problems:
        extraction.combine()
    return problems
