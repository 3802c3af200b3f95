"""Two models that answer what a test says, without photos: what the tests of a comparison share."""

import numpy as np
import pytest

from training.comparison.common_listings import CommonListings, PhotoLogits, match_labels
from training.comparison.compare import compare
from training.inference.evaluated_model import EvaluatedModel
from vision.calibration import Calibration, FieldGuarantee
from vision.images import Preprocessing
from vision.manifest import Manifest


def model(taxonomy, *, thresholds=None, infer=None, input_px=32) -> EvaluatedModel:
    """A model with the given threshold for each field name; the others carry no promise."""
    fields = tuple(
        FieldGuarantee(
            name=name,
            alpha=0.05,
            delta=0.01,
            threshold=threshold,
            num_listings=100,
            num_filled=0 if threshold is None else 90,
            num_errors=0,
            uncertified_reason="" if threshold is not None else "too few listings",
        )
        for name, threshold in (thresholds or {}).items()
    )
    return EvaluatedModel(
        name=f"model of {taxonomy.version}",
        taxonomy=taxonomy,
        calibration=Calibration(fields=fields, certifies={}),
        preprocessing=Preprocessing(input_px=input_px),
        infer=infer,
        load_network=lambda: pytest.fail("a comparison needs no network"),
    )


def create_listings(rows, a, b, *, photo="{}.jpg") -> CommonListings:
    """A listing of one photo a row.

    Args:
        rows: `(category, brand, answer of A, answer of B)`; an answer is a leaf id, or (leaf id, brand index), or
            (leaf id, brand index, logit).
    """
    manifest = Manifest.from_rows(
        [
            {"listing_id": f"l{i}", "photo": photo.format(i), "category": row[0], "brand": row[1]}
            for i, row in enumerate(rows)
        ],
        "",
    )
    return CommonListings(
        a=_logits([row[2] for row in rows], a.taxonomy),
        b=_logits([row[3] for row in rows], b.taxonomy),
        labels=match_labels(manifest, a.taxonomy, b.taxonomy),
        groups=manifest.number_listings(),
        listing_ids=tuple(manifest.column("listing_id").to_pylist()),
        photo_urls=tuple(manifest.get_photo_url(row) for row in range(len(manifest))),
        unusable=(),
    )


def compare_rows(rows, a, b):
    return compare(a, b, create_listings(rows, a, b))


def _logits(answers, taxonomy) -> PhotoLogits:
    category = np.zeros((len(answers), len(taxonomy.leaf_ids)), np.float32)
    brand = np.zeros((len(answers), len(taxonomy.brand_labels)), np.float32)
    for row, answer in enumerate(answers):
        given = (answer,) if isinstance(answer, str) else answer
        leaf, index, logit = (*given, *(0, 9.0)[len(given) - 1 :])
        category[row, taxonomy.leaf_ids.index(leaf)] = logit
        brand[row, index] = logit
    return PhotoLogits(category, brand, np.ones(len(answers), np.float32))
