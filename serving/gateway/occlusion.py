"""Which parts of a photo its likeliest category rests on, by hiding them one after another (Zeiler & Fergus, ECCV 2014,
section 4.1). Needs nothing of the model but its answers.
"""

import asyncio
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from serving.inference.engine import AsyncEngine
from vision.bundle import Bundle
from vision.decision import compute_leaf_probabilities

__all__ = ["GRID_SIZE", "NUM_VARIANTS", "Explanation", "encode_jpeg", "explain"]

GRID_SIZE = 7
"""Cells a side: small enough to tell the product from the table, large enough that hiding one matters."""
NUM_VARIANTS = 1 + GRID_SIZE**2
"""That one explanation has the model compute."""
_BATCH_SIZE = 10
_MARGIN = 0.5
"""A cell is hidden with so much of its neighbours on each side, so that no edge of the hidden part falls on an edge of
the map."""


class Explanation(NamedTuple):
    leaf: int
    """Column of the category logits."""
    probability: float
    importances: npt.NDArray[np.float64]
    """(GRID_SIZE, GRID_SIZE): the probability that is lost with each cell hidden."""


async def explain(engine: AsyncEngine, bundle: Bundle, photo: npt.NDArray[np.uint8]) -> Explanation:
    """Of one (S, S, 3) photo, S being the bundle's input_px.

    Raises:
        EngineError: as the engine's `infer`.
    """
    variants = _occlude_cells(photo)
    logits = []
    for at in range(0, len(variants), _BATCH_SIZE):
        logits.append((await engine.infer(variants[at : at + _BATCH_SIZE])).category)
    probabilities = await asyncio.to_thread(_compute_leaf_probabilities, np.concatenate(logits), bundle)
    leaf = int(probabilities[0].argmax())
    probability_drop = probabilities[0, leaf] - probabilities[1:, leaf]
    return Explanation(leaf, float(probabilities[0, leaf]), probability_drop.reshape(GRID_SIZE, GRID_SIZE))


def encode_jpeg(photo: npt.NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo).save(out, "JPEG", quality=85)
    return out.getvalue()


def _occlude_cells(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(NUM_VARIANTS, S, S, 3): the photo, then the photo with each cell in its mean colour."""
    side = photo.shape[0]
    colour = photo.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
    edges = np.arange(GRID_SIZE) * side / GRID_SIZE
    begins = np.clip(np.floor(edges - _MARGIN * side / GRID_SIZE), 0, side).astype(int)
    ends = np.clip(np.ceil(edges + (1 + _MARGIN) * side / GRID_SIZE), 0, side).astype(int)
    variants = np.repeat(photo[None], NUM_VARIANTS, axis=0)
    for number in range(GRID_SIZE**2):
        row, column = divmod(number, GRID_SIZE)
        variants[1 + number, begins[row] : ends[row], begins[column] : ends[column]] = colour
    return variants


def _compute_leaf_probabilities(logits: npt.NDArray[np.float32], bundle: Bundle) -> npt.NDArray[np.float64]:
    """(P, C), each photo for itself, as `PhotoRecognition` has them."""
    alone = np.arange(len(logits))
    return compute_leaf_probabilities(logits, alone, bundle.calibration, bundle.taxonomy).astype(np.float64)
