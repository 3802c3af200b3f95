"""A further brand for a finished model, from a handful of photos and without training: weight imprinting.

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

from training.export.export import Exported, build_bundle
from training.inference.forward import onnx_forward
from training.inference.network import load_bundle_model
from training.inference.predictions import predict
from vision.bundle import ONNX_ON_CPU, UNKNOWN_BACKEND, Bundle, certificate_binding, refuse_existing
from vision.calibration import BRAND_FIELD, Calibration
from vision.decision import fuse_brand_logits, predict_brands
from vision.engine import Logits
from vision.errors import BundleError, ListingVisionError, ManifestError, PhotoError, TaxonomyError
from vision.images import prepare_photo
from vision.manifest import UNLABELLED, Manifest
from vision.model import CosineHead, ListingClassifier
from vision.taxonomy import Brand, Taxonomy, slug

__all__ = ["MIN_PHOTOS", "AddedBrand", "BrandShift", "add_brand", "compute_brand_shifts", "extend_taxonomy", "imprint"]

_log = logging.getLogger(__name__)

MIN_PHOTOS = 3
"""The brand's bias comes from leaving each photo out in turn; from two others there is no direction worth the name."""

_KEPT_SHARE = 0.75
"""Of the brand's own photos, left out, that it still wins. Chosen on val of Grocery Store (296 photos), three brands
imprinted from five photos each into heads on frozen tf_efficientnet_lite0 features; ranges over three settings of the
head and two choices of the brands, means of five draws of the photos. Before, 93-96 % of the other photos are right,
75-83 % of those that show a brand.

    share   the three brands   all others   other brands
    no bias      82-92 %         74-82 %        0-25 %
    1.0          54-70 %         84-91 %       39-62 %
    0.75         44-52 %         89-95 %       56-80 %
    0.5          26-42 %         92-96 %       70-82 %

What a form is filled with today counts for more than what it could be filled with."""


@dataclass(frozen=True, kw_only=True)
class AddedBrand:
    bundle: Bundle
    brand: Brand
    num_photos: int
    categories_equal: bool
    """Whether all photos' category logits are those of the source bundle, bit for bit."""


@dataclass(frozen=True, kw_only=True)
class BrandShift:
    """What adding the brand did to the listings labelled with one brand."""

    label: str
    """Of the manifest: a brand's name, the no-brand or other-brand literal, `not known`."""
    num_listings: int
    num_right_before: int
    num_right_after: int
    num_to_new: int
    """Listings that another answer was given for before, and the new brand is now."""
    num_changed_otherwise: int


def extend_taxonomy(taxonomy: Taxonomy, name: str, *, aliases: Sequence[str] = ()) -> Taxonomy:
    """The taxonomy with one more brand, the last one, and a version of its own.

    Raises:
        TaxonomyError: a name or alias that stands for something already, or that no id can be made from.
    """
    new = Brand(id=slug(name), names={"en": name.strip()}, aliases=tuple(aliases))
    if not new.id:
        raise TaxonomyError(f"brand name {name!r} has no letter or digit that an id could be made from; give another")
    for text in (new.name, new.id, *aliases):
        try:
            known = taxonomy.find_brand(text)
        except KeyError:
            continue
        stands_for = taxonomy.brand_labels[known] if known >= 0 else taxonomy.other_brand
        raise TaxonomyError(f"brand {text!r} is known already: it stands for {stands_for!r} in {taxonomy.version!r}")
    return replace(taxonomy, version=f"{taxonomy.version}+{new.id}", brands=(*taxonomy.brands, new))


@torch.inference_mode()
def imprint(
    model: ListingClassifier, embeddings: torch.Tensor, *, known_from: float | None = None
) -> ListingClassifier:
    """The model with one more brand label, imprinted from the (N, D) embeddings of N photos; all else bit-equal.

    The weights are the normalised mean of the normalised embeddings. Trained weights point away from the other brands,
    imprinted ones do not, and so would win too often: the bias takes from them what they have more than they need to
    win most of their own photos, each judged by weights imprinted from the others.

    Args:
        model: with a cosine brand head.
        embeddings: of at least `MIN_PHOTOS` photos.
        known_from: the logit below which 'none that I know' is answered; to win is to reach it, too.
    """
    head = model.brand_head
    assert isinstance(head, CosineHead)
    directions = functional.normalize(head.standardised(embeddings), dim=1)
    total = directions.sum(dim=0)
    without_each = functional.normalize(total - directions, dim=1)
    own = (directions * without_each).sum(dim=1) * head.log_scale.exp()
    rivals = head(embeddings).max(dim=1).values
    if known_from is not None:
        rivals = rivals.clamp(min=known_from)
    margins = (own - rivals).sort().values
    surplus = margins[int((1 - _KEPT_SHARE) * len(margins))].clamp(min=0)
    state = dict(model.state_dict())
    state["brand_head.weight"] = torch.cat([head.weight, functional.normalize(total, dim=0)[None]])
    state["brand_head.bias"] = torch.cat([head.bias, -surplus[None]])
    larger = ListingClassifier(replace(model.spec, num_brands=model.spec.num_brands + 1))
    larger.load_state_dict(state)
    return larger.eval()


def add_brand(
    source: Bundle, photos: Mapping[str, bytes], *, name: str, output: Path, aliases: Sequence[str] = ()
) -> AddedBrand:
    """A new bundle that also knows the brand.

    The category promises go over to it, since the category logits are proven to be the same; the brand's is void.

    Args:
        source: of a model with a cosine brand head.
        photos: of the brand's products, by name; at least `MIN_PHOTOS`.
        name: of the brand.
        output: folder of the new bundle.
        aliases: other names of the brand.

    Raises:
        BundleError: another kind of brand head or precision.
        ListingVisionError: too few photos.
        ManifestError: photos that cannot be used, or stand there twice; all of them named.
        TaxonomyError: the name is known already.
        RunError: `output` exists.
        ExportMismatch: an export answers differently from the model.
    """
    refuse_existing(output)
    _check(source, photos)
    taxonomy = extend_taxonomy(source.taxonomy, name, aliases=aliases)
    new = taxonomy.brands[-1]
    photos_nhwc = _prepared(source, photos)
    before = load_bundle_model(source)
    with torch.inference_mode():
        embeddings = before(torch.from_numpy(photos_nhwc)).embedding
        after = imprint(before, embeddings, known_from=source.calibration.unknown_brand_below)
    compared = np.concatenate([source.golden.photos_nhwc, photos_nhwc])
    equal = False

    def calibrated(exported: Exported) -> Calibration:
        nonlocal equal
        wanted, got = onnx_forward(source.onnx_path)(compared), exported.infer(compared)
        equal = _same_but_brand_head(before, after) and bool((wanted.category == got.category).all())
        return _calibration(source, exported, new, categories_equal=equal)

    bundle = build_bundle(
        after,
        output,
        model_name=source.info.model_name,
        taxonomy=taxonomy,
        preprocessing=source.info.preprocessing,
        photos_nhwc=compared,
        photos_from=f"{new.name} and the source bundle's golden ones",
        training=_training(source, new, num_photos=len(photos)),
        calibrated=calibrated,
    )
    return AddedBrand(bundle=bundle, brand=new, num_photos=len(photos), categories_equal=equal)


def compute_brand_shifts(before: Bundle, after: Bundle, manifest: Manifest) -> tuple[BrandShift, ...]:
    """How the brand answers of a manifest's listings changed, by the brand they are labelled with.

    Raises:
        ManifestError: labels unknown to the larger taxonomy, or no photo can be used.
    """
    infer_before, infer_after = onnx_forward(before.onnx_path), onnx_forward(after.onnx_path)
    logits_before: list[npt.NDArray[np.float32]] = []

    def infer(photos_nhwc: npt.NDArray[np.uint8]) -> Logits:
        logits_before.append(infer_before(photos_nhwc).brand)
        return infer_after(photos_nhwc)

    # The bundle is written: a label that it does not know must not hide what it does.
    predictions = predict(manifest, after.taxonomy, after.info.preprocessing, infer, other_brands=True)
    for photo in predictions.unusable:
        _log.warning("not used: %s", photo)
    # The first photo of a listing that carries a label says it, as in evaluation.
    groups = predictions.groups
    truth = np.full(len(predictions.listing_ids), UNLABELLED, dtype=np.int64)
    labelled = np.flatnonzero(predictions.labels.brands != UNLABELLED)[::-1]
    truth[groups[labelled]] = predictions.labels.brands[labelled]
    old = _answered(np.concatenate(logits_before), groups, before.calibration)
    new = _answered(predictions.brand_logits, groups, after.calibration)
    new_label = len(after.taxonomy.brands)
    shifts = []
    for label in sorted(set(truth.tolist()), key=lambda label: (label < 0, label)):
        of = truth == label
        to_new = of & (old != new) & (new == new_label)
        shifts.append(
            BrandShift(
                label=_name(label, after.taxonomy),
                num_listings=int(of.sum()),
                num_right_before=int((of & (old == truth)).sum()),
                num_right_after=int((of & (new == truth)).sum()),
                num_to_new=int(to_new.sum()),
                num_changed_otherwise=int((of & (old != new) & ~to_new).sum()),
            )
        )
    return tuple(shifts)


def _check(source: Bundle, photos: Mapping[str, bytes]) -> None:
    if source.info.brand_head != "cosine":
        raise BundleError(
            f"bundle {source.folder} has a {source.info.brand_head} brand head, which takes no further brand; train "
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


def _prepared(source: Bundle, photos: Mapping[str, bytes]) -> npt.NDArray[np.uint8]:
    problems: list[str] = []
    prepared: dict[bytes, str] = {}
    pixels = []
    for name, data in photos.items():
        try:
            photo = prepare_photo(data, source.info.preprocessing)
        except PhotoError as error:
            problems.append(f"{name}: {error}")
            continue
        # A photo given twice would be judged by itself.
        first = prepared.setdefault(photo.tobytes(), name)
        if first != name:
            problems.append(f"{name}: the same photo as {first}; leave one out")
        pixels.append(photo)
    if problems:
        raise ManifestError("photos of the brand that cannot be used:", problems)
    return np.stack(pixels)


def _same_but_brand_head(before: ListingClassifier, after: ListingClassifier) -> bool:
    kept, larger = before.state_dict(), after.state_dict()
    num_labels = before.spec.num_brands
    rows = {"brand_head.weight", "brand_head.bias"}
    return kept.keys() == larger.keys() and all(
        torch.equal(tensor, larger[name][:num_labels] if name in rows else larger[name])
        for name, tensor in kept.items()
    )


def _calibration(source: Bundle, exported: Exported, new: Brand, *, categories_equal: bool) -> Calibration:
    """The source's, for the new files: without the brand's promise, and without any where the categories moved."""
    reason = f"brand {new.name} was added since calibration; run `listing-vision calibrate`"
    void = source.calibration.void(reason)
    fields = void.fields
    # What is equal was compared with ONNX Runtime on the CPU; another backend builds the larger graph in its own way.
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
        # As rare as the rarest brand of training: a brand that came later has no share in it.
        brand_log_prior=(*log_prior, min(log_prior)) if log_prior else (),
    )


def _training(source: Bundle, new: Brand, *, num_photos: int) -> dict[str, Any]:
    added = {"id": new.id, "name": new.name, "num_photos": num_photos, "to_version": source.info.model_version}
    return {**source.info.training, "brands_added": [*source.info.training.get("brands_added", ()), added]}


def _answered(
    brand_logits: npt.NDArray[np.float32], groups: npt.NDArray[np.int64], calibration: Calibration
) -> npt.NDArray[np.integer]:
    return predict_brands(fuse_brand_logits(brand_logits, groups, calibration), calibration).labels


def _name(label: int, taxonomy: Taxonomy) -> str:
    if label == UNLABELLED:
        return "not known"
    return taxonomy.brand_labels[label] if label >= 0 else taxonomy.other_brand
