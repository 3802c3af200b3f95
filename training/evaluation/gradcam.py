"""Grad-CAM heat maps of what the model looked at (Selvaraju et al., ICCV 2017), alone and on top of their photos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.evaluation.ground_truth import build_ground_truth
from training.inference.evaluated_model import EvaluatedModel
from training.inference.predictions import Predictions
from training.reporting.page import encode_photo_uri
from vision.bundle import Bundle
from vision.errors import ListingVisionError
from vision.images import decode_photo, prepare_photo
from vision.photo_files import read_photo_with_retries
from vision.prediction.fusion import compute_leaf_probabilities

if TYPE_CHECKING:
    import torch

    from vision.model import ListingClassifier

__all__ = ["GradcamExample", "choose_examples", "compute_heat_maps", "draw_overlay", "write_overlays"]

_BATCH_SIZE = 8
_COLOUR = (214, 24, 24)
"""One hue: a map of many colours shows edges where there are none."""
_OPACITY = 0.75
"""Opacity of the colour where the heat is greatest; the photo stays visible below it."""


@dataclass(frozen=True, kw_only=True)
class GradcamExample:
    """A photo with the heat map of its predicted category."""

    photo: str
    """URL."""
    predicted: str
    """Path name of the likeliest leaf of this photo alone; the heat map is that of its logit."""
    probability: float
    label: str
    """Path name of the labelled leaf."""
    image_uri: str
    """The photo as the model sees it, with heat, as a data URI."""


def compute_heat_maps(
    model: "ListingClassifier",
    photos_nhwc: npt.NDArray[np.uint8],
    targets: Sequence[int],
    *,
    field: Literal["category", "brand"] = "category",
) -> npt.NDArray[np.float32]:
    """(N, H, W) float32 in [0, 1]: how much each place of a photo supports one of its logits, 1 at its strongest.

    Grad-CAM at the backbone's last feature map. Where the backbone gives one vector a place (vision transformers, Swin)
    gradients are not averaged over the places first (HiResCAM, Draelos & Carin 2020): captum averages over the last
    axes, which hold the features there. A map is all 0 where nothing supports the logit.

    Args:
        model: in evaluation mode.
        photos_nhwc: (N, H, W, 3), prepared as in serving.
        targets: N columns of the field's logits.
        field: the one whose logits `targets` are.

    Raises:
        ListingVisionError: captum is not installed, or the backbone has no feature map to look at.
    """
    import torch

    assert not model.training
    assert len(targets) == len(photos_nhwc)
    maps = [
        _compute_heat(
            model,
            torch.from_numpy(photos_nhwc[at : at + _BATCH_SIZE]),
            torch.tensor(targets[at : at + _BATCH_SIZE]),
            output=f"{field}_logits",
        )
        for at in range(0, len(photos_nhwc), _BATCH_SIZE)
    ]
    return np.concatenate(maps)


def draw_overlay(photo: npt.NDArray[np.uint8], heat: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) uint8: the photo with its heat in one red, the more opaque the hotter, as on the page of the service.

    Args:
        photo: (H, W, 3).
        heat: (h, w) in [0, 1] of the same photo at any size.
    """
    height, width = photo.shape[:2]
    resized = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    amount = np.asarray(resized).clip(0, 1)
    share = _OPACITY * amount[..., None]
    return np.asarray((1 - share) * photo + share * np.array(_COLOUR)).round().astype(np.uint8)


def choose_examples(predictions: Predictions, model: EvaluatedModel, *, num_each: int = 6) -> Sequence[GradcamExample]:
    """The `num_each` most confident mistakes, then as many right predictions, evenly spread over the split.

    Raises:
        ListingVisionError: captum is not installed, or the backbone has no feature map to look at.
    """
    taxonomy = model.taxonomy
    leaves = compute_leaf_probabilities(predictions.category_logits, None, model.calibration, taxonomy)
    predicted, confidences = leaves.argmax(axis=1), leaves.max(axis=1)
    labels = build_ground_truth(predictions.labels, taxonomy).leaves
    wrong = np.flatnonzero((labels >= 0) & (predicted != labels))
    right = np.flatnonzero((labels >= 0) & (predicted == labels))
    most_confident = wrong[np.argsort(-confidences[wrong], kind="stable")][:num_each]
    rows = np.concatenate([most_confident, _choose_evenly(right, num_each)])
    if len(rows) == 0:
        return []
    photos = np.stack(
        [
            prepare_photo(read_photo_with_retries(predictions.photo_urls[row]), model.preprocessing)
            for row in rows.tolist()
        ]
    )
    heats = compute_heat_maps(model.load_network(), photos, predicted[rows].tolist())
    names = [taxonomy.format_path(leaf) for leaf in taxonomy.leaf_ids]
    return [
        GradcamExample(
            photo=predictions.photo_urls[row],
            predicted=names[predicted[row]],
            probability=float(confidences[row]),
            label=names[labels[row]],
            image_uri=encode_photo_uri(Image.fromarray(draw_overlay(photo, heat))),
        )
        for row, photo, heat in zip(rows.tolist(), photos, heats, strict=True)
    ]


def write_overlays(
    bundle: Bundle, photos: Sequence[tuple[str, bytes]], folder: Path, *, category_id: str, brand_id: str = ""
) -> list[Path]:
    """Write heat maps as JPEGs and return their paths.

    The names are `NN-NAME-category.jpg` for each photo, and `NN-NAME-brand.jpg` where a brand is given.

    Args:
        bundle: the model whose heat maps are drawn.
        photos: file names and bytes of photos that can be used.
        folder: made where it is missing.
        category_id: a leaf.
        brand_id: empty for none.
    """
    from training.inference.network import load_bundle_model

    model, info = load_bundle_model(bundle), bundle.info
    taxonomy = bundle.taxonomy
    targets: dict[Literal["category", "brand"], int] = {"category": taxonomy.leaf_ids.index(category_id)}
    if brand_id:
        targets["brand"] = 1 + [brand.id for brand in taxonomy.brands].index(brand_id)
    prepared = np.stack([prepare_photo(data, info.preprocessing) for _, data in photos])
    shown = [decode_photo(data, at_least_px=info.preprocessing.input_px) for _, data in photos]
    names = [name for name, _ in photos]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for field, target in targets.items():
        heats = compute_heat_maps(model, prepared, [target] * len(prepared), field=field)
        for number, (name, photo, heat) in enumerate(zip(names, shown, heats, strict=True)):
            path = folder / f"{number:02d}-{Path(name).stem}-{field}.jpg"
            Image.fromarray(draw_overlay(photo, heat)).save(path, quality=90)
            written.append(path)
    return sorted(written)


def _compute_heat(
    model: "ListingClassifier", photos_nhwc: "torch.Tensor", targets: "torch.Tensor", *, output: str
) -> npt.NDArray[np.float32]:
    import torch

    attr = _import_captum()
    layer = _find_last_feature_map(model.backbone)

    def logits(photos: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = getattr(model(photos), output)
        return values

    with torch.enable_grad():
        num_features = int(cast(Any, model.backbone).feature_info[-1]["num_chs"])
        shape = attr.LayerActivation(logits, layer).attribute(photos_nhwc[:1]).shape
        if len(shape) == 4 and shape[1] == num_features:
            heat = attr.LayerGradCam(logits, layer).attribute(photos_nhwc, targets)
        else:
            products = attr.LayerGradientXActivation(logits, layer).attribute(photos_nhwc, targets)
            heat = _reshape_to_grid(products.sum(dim=-1), model.backbone)[:, None]
    heat = attr.LayerAttribution.interpolate(heat.detach().relu(), tuple(photos_nhwc.shape[1:3]), "bilinear")[:, 0]
    strongest = heat.amax(dim=(1, 2), keepdim=True)
    scaled: npt.NDArray[np.float32] = torch.where(strongest > 0, heat / strongest, 0.0).numpy()
    return scaled


def _import_captum() -> Any:
    try:
        import captum.attr
    except ModuleNotFoundError:
        raise ListingVisionError(
            "the package 'captum' is not installed, which draws heat maps; install listing-vision[explain]"
        ) from None
    return captum.attr


def _find_last_feature_map(backbone: "torch.nn.Module") -> "torch.nn.Module":
    feature_info = getattr(backbone, "feature_info", None)
    if not feature_info:
        raise ListingVisionError(f"backbone {type(backbone).__name__} names no feature map to look at (feature_info)")
    layer = backbone.get_submodule(feature_info[-1]["module"])
    # A class token attends to the others in the last block; after it, no other token has any influence.
    return layer.get_submodule("norm1") if hasattr(layer, "norm1") else layer


def _reshape_to_grid(places: "torch.Tensor", backbone: "torch.nn.Module") -> "torch.Tensor":
    """(N, h, w) from (N, h, w), or from (N, T) tokens of a square photo, of which the first may be class tokens."""
    import torch

    if places.ndim == 3:
        return places
    places = places[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
    side = round(places.shape[1] ** 0.5)
    grid: torch.Tensor = places.unflatten(1, (side, side))
    return grid


def _choose_evenly(rows: npt.NDArray[np.int64], num: int) -> npt.NDArray[np.int64]:
    """At most `num` of the rows, evenly from first to last."""
    chosen: npt.NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(num, len(rows))).round().astype(int)]
    return chosen
