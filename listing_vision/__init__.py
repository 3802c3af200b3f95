"""The public API of the project, `__all__`; `vision`, `training` and `serving` are how it is made.

Names are imported when they are first used: `import listing_vision` needs neither PyTorch nor gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Any

from vision import __version__

if TYPE_CHECKING:
    from listing_vision.predictor import Predictor
    from listing_vision_client import (
        Access,
        AsyncListingVisionClient,
        CallFailed,
        ClientTls,
        ListingToClassify,
        ListingVisionClient,
    )
    from training.api import Evaluation, Trainer, evaluate
    from training.recipe import Recipe, load_recipe
    from training.run import Run
    from vision.bundle import Bundle, load_bundle
    from vision.calibration import Calibration
    from vision.decision import decide
    from vision.engine import Logits, OnnxEngine
    from vision.errors import ListingVisionError, PhotoError
    from vision.images import PhotoLimits, Preprocessing, decode_photo, prepare_photo
    from vision.manifest import Manifest
    from vision.suggestion import Suggestion
    from vision.taxonomy import Brand, Category, Taxonomy

__all__ = [
    "Access",
    "AsyncListingVisionClient",
    "Brand",
    "Bundle",
    "Calibration",
    "CallFailed",
    "Category",
    "ClientTls",
    "Evaluation",
    "ListingToClassify",
    "ListingVisionClient",
    "ListingVisionError",
    "Logits",
    "Manifest",
    "OnnxEngine",
    "PhotoError",
    "PhotoLimits",
    "Predictor",
    "Preprocessing",
    "Recipe",
    "Run",
    "Suggestion",
    "Taxonomy",
    "Trainer",
    "__version__",
    "decide",
    "decode_photo",
    "evaluate",
    "load_bundle",
    "load_recipe",
    "prepare_photo",
]

_MODULES = {
    "listing_vision_client": (
        "Access",
        "AsyncListingVisionClient",
        "CallFailed",
        "ClientTls",
        "ListingToClassify",
        "ListingVisionClient",
    ),
    "listing_vision.predictor": ("Predictor",),
    "training.api": ("Evaluation", "Trainer", "evaluate"),
    "training.recipe": ("Recipe", "load_recipe"),
    "training.run": ("Run",),
    "vision.bundle": ("Bundle", "load_bundle"),
    "vision.calibration": ("Calibration",),
    "vision.decision": ("decide",),
    "vision.engine": ("Logits", "OnnxEngine"),
    "vision.errors": ("ListingVisionError", "PhotoError"),
    "vision.images": ("PhotoLimits", "Preprocessing", "decode_photo", "prepare_photo"),
    "vision.manifest": ("Manifest",),
    "vision.suggestion": ("Suggestion",),
    "vision.taxonomy": ("Brand", "Category", "Taxonomy"),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'listing_vision' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
