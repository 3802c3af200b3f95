"""Weight imprinting: a new brand for a finished model, from a handful of photos and without training.

Qi, Brown & Lowe, CVPR 2018: a cosine classifier's weights for a class are what the embeddings of its photos point to.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from training.export.export import UncalibratedBundle, build_bundle
from training.inference.forward import onnx_forward
from training.inference.network import load_bundle_model
from training.inference.predictions import predict
from vision.bundle import ONNX_ON_CPU, UNKNOWN_BACKEND, Bundle, certificate_binding, require_new_folder
from vision.calibration import BRAND_FIELD, Calibration
from vision.engine import Logits
from vision.errors import BundleError, ListingVisionError, ManifestError, PhotoError, TaxonomyError
from vision.images import prepare_photo
from vision.manifest import UNLABELLED, Manifest
from vision.model import CosineHead, ListingClassifier
from vision.prediction.fusion import fuse_brand_logits
from vision.prediction.listings import predict_brands
from vision.taxonomy import Brand, Taxonomy, create_slug

__all__ = [
    "MIN_PHOTOS",
    "AddedBrand",
    "BrandShift",
    "add_brand",
    "compute_brand_shifts",
    "extend_taxonomy",
    "imprint_brand",
]

_log = logging.getLogger(__name__)

MIN_PHOTOS = 3
"""The brand's bias is found by leaving each photo out in turn; two remaining photos are the least that give a
direction."""

_MIN_OWN_SHARE = 0.75
"""Share of the brand's own left-out photos that the new brand must win. Chosen on val of Grocery Store (296 photos),
three brands imprinted from five photos each into heads on frozen tf_efficientnet_lite0 features; ranges over three
settings of the head and two choices of the brands, means of five draws of the photos. Before, 93-96 % of the other
photos are right, 75-83 % of those that show a brand.

    share   the three brands   all others   other brands
    no bias      82-92 %         74-82 %        0-25 %
    1.0          54-70 %         84-91 %       39-62 %
    0.75         44-52 %         89-95 %       56-80 %
    0.5          26-42 %         92-96 %       70-82 %

Keeping the predictions of known brands was preferred to gaining those of the new one."""


@dataclass(frozen=True, kw_only=True)
class AddedBrand:
    bundle: Bundle
    brand: Brand
    num_photos: int
    categories_equal: bool
    """Whether all photos' category logits are those of the source bundle, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class BrandShift:
    """The effect of the new brand on the listings labelled with one brand."""

    label: str
    """The manifest's label: a brand's name, the no-brand or other-brand literal, or `not known`."""
    num_listings: int
    num_right_before: int
    num_right_after: int
    num_moved_to_new: int
    """Listings whose prediction changed to the new brand."""
    num_changed_otherwise: int


def extend_taxonomy(taxonomy: Taxonomy, name: str, *, aliases: Sequence[str] = ()) -> Taxonomy:
    """The taxonomy with one more brand, the last one, and a version of its own.

    Raises:
        TaxonomyError: a name or alias that is known already, or from which no id can be made.
    """
    new = Brand(id=create_slug(name), names={"en": name.strip()}, aliases=tuple(aliases))
    if not new.id:
        raise TaxonomyError(f"brand name {name!r} has no character that an id could be made from; give another")
    for text in (new.name, new.id, *aliases):
        try:
            known = taxonomy.find_brand(text)
        except KeyError:
            continue
        known_brand = taxonomy.brand_labels[known] if known >= 0 else taxonomy.other_brand
        raise TaxonomyError(f"brand {text!r} is known already: it means {known_brand!r} in {taxonomy.version!r}")
    return replace(taxonomy, version=f"{taxonomy.version}+{new.id}", brands=(*taxonomy.brands, new))


@torch.inference_mode()
def imprint_brand(
    model: ListingClassifier, embeddings: torch.Tensor, *, unknown_below: float | None = None
) -> ListingClassifier:
    """The model with one more brand label, imprinted from the (N, D) embeddings of N photos; all else bit-equal.

    The weights are the normalised mean of the normalised embeddings. Trained weights point away from the other brands,
    imprinted ones do not, and would win too often: the bias lowers them to what they need to win most of their own
    photos, each compared with weights imprinted from the other photos.

    Args:
        model: with a cosine brand head.
        embeddings: those of at least `MIN_PHOTOS` photos.
        unknown_below: the logit below which a brand is predicted as unknown; to win, the new brand must reach it too.
    """
    head = model.brand_head
    assert isinstance(head, CosineHead)
    directions = functional.normalize(head.standardise(embeddings), dim=1)
    total = directions.sum(dim=0)
    without_each = functional.normalize(total - directions, dim=1)
    own = (directions * without_each).sum(dim=1) * head.log_scale.exp()
    rivals = head(embeddings).max(dim=1).values
    if unknown_below is not None:
        rivals = rivals.clamp(min=unknown_below)
    margins = (own - rivals).sort().values
    surplus = margins[int((1 - _MIN_OWN_SHARE) * len(margins))].clamp(min=0)
    state = dict(model.state_dict())
    state["brand_head.weight"] = torch.cat([head.weight, functional.normalize(total, dim=0)[None]])
    state["brand_head.bias"] = torch.cat([head.bias, -surplus[None]])
    larger = ListingClassifier(replace(model.spec, num_brands=model.spec.num_brands + 1))
    larger.load_weights(state)
    return larger.eval()


def add_brand(
    source: Bundle, photos: Mapping[str, bytes], *, name: str, output: Path, aliases: Sequence[str] = ()
) -> AddedBrand:
    """Write a new bundle that also knows the brand.

    The category guarantees are kept, because the category logits are verified to be the same; the brand's is void.

    Args:
        source: a bundle with a cosine brand head.
        photos: at least `MIN_PHOTOS` of the brand's products, by file name.
        name: the brand's name.
        output: folder of the new bundle.
        aliases: other names of the brand.

    Raises:
        BundleError: another kind of brand head or precision.
        ListingVisionError: too few photos.
        ManifestError: unusable or repeated photos; all of them are named.
        TaxonomyError: the name is known already.
        RunError: `output` exists.
        ExportMismatch: an export predicts differently from the model.
    """
    require_new_folder(output)
    _check_source(source, photos)
    taxonomy = extend_taxonomy(source.taxonomy, name, aliases=aliases)
    new = taxonomy.brands[-1]
    photos_nhwc = _prepare_distinct(source, photos)
    before = load_bundle_model(source)
    with torch.inference_mode():
        embeddings = before(torch.from_numpy(photos_nhwc)).embedding
        after = imprint_brand(before, embeddings, unknown_below=source.calibration.unknown_brand_below)
    compared = np.concatenate([source.golden.photos_nhwc, photos_nhwc])
    equal = False

    def calibrate_export(exported: UncalibratedBundle) -> Calibration:
        nonlocal equal
        wanted, got = onnx_forward(source.onnx_path)(compared), exported.infer(compared)
        equal = _differs_only_in_brand_head(before, after) and bool((wanted.category == got.category).all())
        return _carry_over_calibration(source, exported, new, categories_equal=equal)

    bundle = build_bundle(
        after,
        output,
        model_name=source.info.model_name,
        taxonomy=taxonomy,
        preprocessing=source.info.preprocessing,
        photos_nhwc=compared,
        photos_from=f"{new.name} and the source bundle's golden ones",
        training=_extend_training_record(source, new, num_photos=len(photos)),
        calibrate_export=calibrate_export,
        pt2="model.pt2" in source.files,
    )
    return AddedBrand(bundle=bundle, brand=new, num_photos=len(photos), categories_equal=equal)


def compute_brand_shifts(before: Bundle, after: Bundle, manifest: Manifest) -> tuple[BrandShift, ...]:
    """Compute how the predicted brands of a manifest's listings changed, by the brand they are labelled with.

    Raises:
        ManifestError: labels unknown to the larger taxonomy, or no photo can be used.
    """
    infer_before, infer_after = onnx_forward(before.onnx_path), onnx_forward(after.onnx_path)
    logits_before: list[npt.NDArray[np.float32]] = []

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        logits_before.append(infer_before(photos_nhwc).brand)
        return infer_after(photos_nhwc)

    # The bundle is written already: an unknown label must not hide its effect.
    predictions = predict(manifest, after.taxonomy, after.info.preprocessing, infer, other_brands=True)
    for photo in predictions.unusable:
        _log.warning("not used: %s", photo)
    # The label of a listing is that of its first labelled photo, as in evaluation.
    groups = predictions.groups
    truth = np.full(len(predictions.listing_ids), UNLABELLED, dtype=np.int64)
    labelled = np.flatnonzero(predictions.labels.brands != UNLABELLED)[::-1]
    truth[groups[labelled]] = predictions.labels.brands[labelled]
    old = _predict_brands(np.concatenate(logits_before), groups, before.calibration)
    new = _predict_brands(predictions.brand_logits, groups, after.calibration)
    new_label = len(after.taxonomy.brands)
    shifts = []
    for label in sorted(set(truth.tolist()), key=lambda label: (label < 0, label)):
        of = truth == label
        moved_to_new = of & (old != new) & (new == new_label)
        shifts.append(
            BrandShift(
                label=_name_label(label, after.taxonomy),
                num_listings=int(of.sum()),
                num_right_before=int((of & (old == truth)).sum()),
                num_right_after=int((of & (new == truth)).sum()),
                num_moved_to_new=int(moved_to_new.sum()),
                num_changed_otherwise=int((of & (old != new) & ~moved_to_new).sum()),
            )
        )
    return tuple(shifts)


def _check_source(source: Bundle, photos: Mapping[str, bytes]) -> None:
    if source.info.brand_head != "cosine":
        raise BundleError(
            f"bundle {source.folder} has a {source.info.brand_head} brand head, to which no brand can be added; train "
            'with brand_head = "cosine" in the recipe and export again'
        )
    if source.info.precision != "fp32":
        raise BundleError(
            f"bundle {source.folder} has the precision {source.info.precision}; add the brand to the fp32 bundle that "
            "it was made from"
        )
    if len(photos) < MIN_PHOTOS:
        raise ListingVisionError(
            f"{len(photos)} photos of the brand are too few; give at least {MIN_PHOTOS}, better 5 to 20"
        )


def _prepare_distinct(source: Bundle, photos: Mapping[str, bytes]) -> npt.NDArray[np.uint8]:
    problems: list[str] = []
    prepared: dict[bytes, str] = {}
    pixels = []
    for name, data in photos.items():
        try:
            photo = prepare_photo(data, source.info.preprocessing)
        except PhotoError as error:
            problems.append(f"{name}: {error}")
            continue
        # A repeated photo would be compared with itself.
        first = prepared.setdefault(photo.tobytes(), name)
        if first != name:
            problems.append(f"{name}: the same photo as {first}; leave one out")
        pixels.append(photo)
    if problems:
        raise ManifestError("photos of the brand that cannot be used:", problems)
    return np.stack(pixels)


def _differs_only_in_brand_head(before: ListingClassifier, after: ListingClassifier) -> bool:
    kept, larger = before.state_dict(), after.state_dict()
    num_labels = before.spec.num_brands
    rows = {"brand_head.weight", "brand_head.bias"}
    return kept.keys() == larger.keys() and all(
        torch.equal(tensor, larger[name][:num_labels] if name in rows else larger[name])
        for name, tensor in kept.items()
    )


def _carry_over_calibration(
    source: Bundle, exported: UncalibratedBundle, new: Brand, *, categories_equal: bool
) -> Calibration:
    """The source's calibration for the new files: the brand is void, and so is every field if category logits
    changed."""
    reason = f"brand {new.name} was added since calibration; run `listing-vision calibrate`"
    void = source.calibration.void(reason)
    fields = void.fields
    # Equality was verified with ONNX Runtime on the CPU; another backend may compute the larger graph differently.
    if categories_equal and source.calibration.certifies.get("backend") == ONNX_ON_CPU:
        pairs = zip(source.calibration.fields, void.fields, strict=True)
        fields = tuple(voided if kept.name == BRAND_FIELD else kept for kept, voided in pairs)
    backend = source.calibration.certifies.get("backend", UNKNOWN_BACKEND)
    facts = certificate_binding(exported.info, exported.sha256, backend=backend)
    log_prior = source.calibration.brand_log_prior
    return replace(
        source.calibration,
        fields=fields,
        certifies={**source.calibration.certifies, **facts},
        # As rare as the rarest brand of training, in which the new brand has no share.
        brand_log_prior=(*log_prior, min(log_prior)) if log_prior else (),
    )


def _extend_training_record(source: Bundle, new: Brand, *, num_photos: int) -> dict[str, Any]:
    added = {"id": new.id, "name": new.name, "num_photos": num_photos, "to_version": source.info.model_version}
    return {**source.info.training, "brands_added": [*source.info.training.get("brands_added", ()), added]}


def _predict_brands(
    brand_logits: npt.NDArray[np.float32], groups: npt.NDArray[np.int64], calibration: Calibration
) -> npt.NDArray[np.integer]:
    return predict_brands(fuse_brand_logits(brand_logits, groups, calibration), calibration).labels


def _name_label(label: int, taxonomy: Taxonomy) -> str:
    if label == UNLABELLED:
        return "not known"
    return taxonomy.brand_labels[label] if label >= 0 else taxonomy.other_brand
