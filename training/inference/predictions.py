"""Predictions of a model for all photos of a manifest; unusable photos are named."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vision.engine import Logits
from vision.errors import ManifestError, PhotoError
from vision.images import PhotoLimits, Preprocessing, prepare_photo, read_size_px
from vision.manifest import Labels, Manifest
from vision.photo_files import read_photo_with_retries
from vision.runtime.cpus import count_usable_cores
from vision.runtime.progress import Progress
from vision.taxonomy import Taxonomy

__all__ = ["Infer", "InferFiles", "Predictions", "iterate_photos", "iterate_usable_photos", "predict"]

Infer = Callable[[npt.NDArray[np.uint8]], Logits]
InferFiles = Callable[[Sequence[bytes]], tuple[Sequence[PhotoError | None], Logits]]
"""From encoded photos to the error of each, and the logits of those without error, in their order."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Logits and labels of the usable photos, in the manifest's order; P photos of N listings."""

    category_logits: npt.NDArray[np.float32]
    """(P, C)."""
    brand_logits: npt.NDArray[np.float32]
    """(P, B)."""
    scope_scores: npt.NDArray[np.float32]
    """(P,), NaN where the model has none."""
    labels: Labels
    """Labels of the P photos."""
    groups: npt.NDArray[np.int64]
    """(P,) listing number 0…N-1."""
    listing_ids: tuple[str, ...]
    """N ids."""
    photo_urls: tuple[str, ...]
    """URLs of the P photos."""
    unusable: tuple[str, ...]
    """What was wrong with each photo that is not among the P."""
    short_sides_px: npt.NDArray[np.int64] | None = None
    """(P,) of the stored photos, before any resizing; None where not known."""
    num_bytes: npt.NDArray[np.int64] | None = None
    """(P,) of the encoded photos; None where not known."""
    brightness: npt.NDArray[np.float64] | None = None
    """(P,) mean of a photo's values as the model sees them, 0…255; None where not known."""


def iterate_photos(
    manifest: Manifest,
    preprocessing: Preprocessing,
    batches: Sequence[Sequence[int]],
    *,
    unusable: list[str],
    sizes_px: list[tuple[int, int]] | None = None,
    num_bytes: list[int] | None = None,
    rendition_px: int | None = None,
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
    """The usable ones of each batch of rows and their photos (N, S, S, 3), the next batch decoding meanwhile.

    N may be 0.

    Args:
        batches: rows of the manifest, in the order in which they are wanted.
        unusable: takes up what is wrong with each photo that is left out.
        sizes_px: takes up width and height, as stored, of each photo that is not.
        num_bytes: takes up how many bytes each of these has.
        rendition_px: short side of the photos if they are renditions; larger ones are unusable.
    """

    limits = PhotoLimits(rendition_px=rendition_px)

    def prepare(row: int) -> tuple[npt.NDArray[np.uint8], tuple[int, int], int] | str:
        url = manifest.get_photo_url(row)
        try:
            data = read_photo_with_retries(url)
            return prepare_photo(data, preprocessing, limits), read_size_px(data), len(data)
        except (OSError, PhotoError) as error:
            return f"{url}: {error}"

    side = preprocessing.input_px
    # Not feeders, which on two cores start late and decode no faster (docs/log.md); with many cores it is not measured.
    with ThreadPoolExecutor(count_usable_cores()) as pool:
        upcoming = pool.map(prepare, batches[0] if batches else ())
        for i, rows in enumerate(batches):
            decoded = list(upcoming)
            upcoming = pool.map(prepare, batches[i + 1] if i + 1 < len(batches) else ())
            unusable.extend(photo for photo in decoded if isinstance(photo, str))
            used = {row: photo for row, photo in zip(rows, decoded, strict=True) if not isinstance(photo, str)}
            if sizes_px is not None:
                sizes_px.extend(size for _, size, _ in used.values())
            if num_bytes is not None:
                num_bytes.extend(length for _, _, length in used.values())
            photos = [photo for photo, *_ in used.values()]
            yield list(used), np.stack(photos) if photos else np.empty((0, side, side, 3), np.uint8)


def iterate_usable_photos(
    manifest: Manifest,
    preprocessing: Preprocessing,
    *,
    unusable: list[str],
    sizes_px: list[tuple[int, int]] | None = None,
    num_bytes: list[int] | None = None,
    rendition_px: int | None = None,
    batch_size: int = 64,
) -> Iterator[tuple[list[int], npt.NDArray[np.uint8]]]:
    """`iterate_photos` over the whole manifest with its progress shown, without empty batches.

    Raises:
        ManifestError: no photo can be used; raised after the last batch.
    """
    batches = [range(at, min(at + batch_size, len(manifest))) for at in range(0, len(manifest), batch_size)]
    num_used = 0
    with Progress("photos through the model", len(manifest)) as progress:
        for batch, (rows, photos) in zip(
            batches,
            iterate_photos(
                manifest,
                preprocessing,
                batches,
                unusable=unusable,
                sizes_px=sizes_px,
                num_bytes=num_bytes,
                rendition_px=rendition_px,
            ),
            strict=True,
        ):
            if rows:
                yield rows, photos
            num_used += len(rows)
            progress.advance(len(batch))
    if num_used == 0:
        raise ManifestError("no photo of the manifest can be used:", unusable)


def predict(
    manifest: Manifest,
    taxonomy: Taxonomy,
    preprocessing: Preprocessing,
    infer: Infer,
    *,
    infer_files: InferFiles | None = None,
    rendition_px: int | None = None,
    batch_size: int = 64,
    other_brands: bool = False,
) -> Predictions:
    """Decode and classify every photo.

    Args:
        manifest: the photos to classify.
        taxonomy: of the model.
        preprocessing: of the model.
        infer: the model.
        infer_files: the model where it decodes by its own means; then asked instead, for what can be decoded here.
        rendition_px: short side of the photos if they are renditions; larger ones are unusable.
        batch_size: photos at once through the model.
        other_brands: whether a brand that the taxonomy lacks is taken as such instead of refused.

    Raises:
        ManifestError: unknown labels, or no photo can be used.
    """
    labels = manifest.resolve_labels(taxonomy, other_brands=other_brands, out_of_scope=True)
    kept: list[int] = []
    unusable: list[str] = []
    sizes_px: list[tuple[int, int]] = []
    num_bytes: list[int] = []
    answers: list[Logits] = []
    brightness: list[npt.NDArray[np.float64]] = []
    is_answered: list[bool] = []
    for rows, photos in iterate_usable_photos(
        manifest,
        preprocessing,
        unusable=unusable,
        sizes_px=sizes_px,
        num_bytes=num_bytes,
        rendition_px=rendition_px,
        batch_size=batch_size,
    ):
        kept += rows
        brightness.append(photos.mean(axis=(1, 2, 3)))
        errors: Sequence[PhotoError | None] = [None] * len(rows)
        if infer_files is None:
            answers.append(infer(photos))
        else:
            urls = [manifest.get_photo_url(row) for row in rows]
            errors, answered = infer_files([read_photo_with_retries(url) for url in urls])
            answers.append(answered)
            unusable += [f"{url}: {error}" for url, error in zip(urls, errors, strict=True) if error]
        is_answered += [error is None for error in errors]
    if not any(is_answered):
        raise ManifestError("no photo of the manifest can be used:", unusable)
    usable = np.array(is_answered)
    kept_rows = np.array(kept)[usable]
    used = manifest.take(kept_rows)
    groups = used.number_listings()
    firsts = np.unique(groups, return_index=True)[1]
    ids = used.column("listing_id").to_pylist()
    return Predictions(
        category_logits=np.concatenate([a.category for a in answers]),
        brand_logits=np.concatenate([a.brand for a in answers]),
        scope_scores=np.concatenate([a.scope for a in answers]),
        labels=Labels(category_nodes=labels.category_nodes[kept_rows], brands=labels.brands[kept_rows]),
        groups=groups,
        listing_ids=tuple(ids[first] for first in firsts),
        photo_urls=tuple(used.get_photo_url(row) for row in range(len(used))),
        unusable=tuple(unusable),
        short_sides_px=np.array([min(size) for size in sizes_px])[usable],
        num_bytes=np.array(num_bytes)[usable],
        brightness=np.concatenate(brightness)[usable],
    )
