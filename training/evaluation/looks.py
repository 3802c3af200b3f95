"""Where the model looked on some photos of an evaluation: its surest mistakes, and some right answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.evaluation.gradcam import heat_maps, overlay
from training.evaluation.ground_truth import truth_by_depth
from training.inference.evaluated_model import JudgedModel
from training.inference.predictions import Predictions
from training.reporting.page import photo_uri
from vision.decision import compute_leaf_probabilities
from vision.images import prepare_photo
from vision.manifest import read_photo

__all__ = ["Look", "looks"]


@dataclass(frozen=True, kw_only=True)
class Look:
    photo: str
    """URL."""
    answered: str
    """Path name of the likeliest leaf of this photo alone; the heat speaks for it."""
    probability: float
    true: str
    """Path name of the labelled leaf."""
    image_uri: str
    """The photo as the model sees it, with heat, as a data URI."""


def looks(predictions: Predictions, judged: JudgedModel, *, num_each: int = 6) -> Sequence[Look]:
    """At most `num_each` surest mistakes, surest first, then as many right answers from all over the split.

    Raises:
        ListingVisionError: captum is not installed, or the backbone has no feature map to look at.
    """
    taxonomy = judged.taxonomy
    each_alone = np.arange(len(predictions.groups))
    leaves = compute_leaf_probabilities(predictions.category_logits, each_alone, judged.calibration, taxonomy)
    answered, sure = leaves.argmax(axis=1), leaves.max(axis=1)
    true = truth_by_depth(predictions.labels, taxonomy).leaves
    wrong = np.flatnonzero((true >= 0) & (answered != true))
    right = np.flatnonzero((true >= 0) & (answered == true))
    surest = wrong[np.argsort(-sure[wrong], kind="stable")][:num_each]
    rows = np.concatenate([surest, _spread(right, num_each)])
    if len(rows) == 0:
        return []
    photos = np.stack(
        [prepare_photo(read_photo(predictions.photo_urls[row]), judged.preprocessing) for row in rows.tolist()]
    )
    heats = heat_maps(judged.trained(), photos, answered[rows].tolist())
    names = [taxonomy.path_name(leaf) for leaf in taxonomy.leaf_ids]
    return [
        Look(
            photo=predictions.photo_urls[row],
            answered=names[answered[row]],
            probability=float(sure[row]),
            true=names[true[row]],
            image_uri=photo_uri(Image.fromarray(overlay(photo, heat))),
        )
        for row, photo, heat in zip(rows.tolist(), photos, heats, strict=True)
    ]


def _spread(rows: npt.NDArray[np.int64], num: int) -> npt.NDArray[np.int64]:
    """At most `num` of the rows, evenly from first to last."""
    chosen: npt.NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, min(num, len(rows))).round().astype(int)]
    return chosen
