"""A model's answers for all photos of a manifest, with the photos that could not be used counted and named."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vision.engine import Logits
from vision.errors import ManifestError, PhotoError
from vision.images import Preprocessing, prepare_photo
from vision.manifest import Labels, Manifest, photo_bytes
from vision.taxonomy import Taxonomy

__all__ = ["Infer", "Predictions", "predict"]

Infer = Callable[[npt.NDArray[np.uint8]], Logits]


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Answers and labels of the usable photos, in the manifest's order; P photos of N listings."""

    category_logits: npt.NDArray[np.float32]
    """(P, C)."""
    brand_logits: npt.NDArray[np.float32]
    """(P, B)."""
    labels: Labels
    """Of the P photos."""
    groups: npt.NDArray[np.int64]
    """(P,) listing number 0…N-1."""
    listing_ids: tuple[str, ...]
    """N ids."""
    unusable: tuple[str, ...]
    """What was wrong with each photo that is not among the P."""


def predict(
    manifest: Manifest, taxonomy: Taxonomy, preprocessing: Preprocessing, infer: Infer, *, batch_size: int = 64
) -> Predictions:
    """Decode and classify every photo.

    Raises:
        ManifestError: unknown labels, or no photo can be used.
    """
    labels = manifest.labels(taxonomy)
    kept: list[int] = []
    unusable: list[str] = []
    answers: list[Logits] = []

    def prepare(row: int) -> npt.NDArray[np.uint8] | str:
        url = manifest.photo_url(row)
        try:
            return prepare_photo(photo_bytes(url), preprocessing)
        except (OSError, PhotoError) as error:
            return f"{url}: {error}"

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in tqdm(range(0, len(manifest), batch_size), unit="batch", disable=None):
            photos = []
            rows = range(start, min(start + batch_size, len(manifest)))
            for row, photo in zip(rows, pool.map(prepare, rows), strict=True):
                if isinstance(photo, str):
                    unusable.append(photo)
                else:
                    kept.append(row)
                    photos.append(photo)
            if photos:
                answers.append(infer(np.stack(photos)))
    if not kept:
        raise ManifestError("no photo of the manifest can be used:", unusable)
    used = manifest.take(np.array(kept))
    groups = used.listing_groups()
    firsts = np.unique(groups, return_index=True)[1]
    ids = used.column("listing_id").to_pylist()
    return Predictions(
        category_logits=np.concatenate([a.category for a in answers]),
        brand_logits=np.concatenate([a.brand for a in answers]),
        labels=Labels(category_nodes=labels.category_nodes[kept], brands=labels.brands[kept]),
        groups=groups,
        listing_ids=tuple(ids[first] for first in firsts),
        unusable=tuple(unusable),
    )
