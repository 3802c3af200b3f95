"""Errors of training that a user can act on.

ListingVisionError
├── RecipeError                   a training recipe with a wrong value
├── GateError                     a release gate with a wrong value
├── RunError                      a training run that cannot start, resume or be read
│   ├── LossNotFinite             a step whose loss is NaN or infinite
│   └── RunStopped                a stop was requested before there was anything to train on
├── ExportMismatch                an export whose outputs differ from the trained model's
└── PrecisionRefused              another precision that loses too much accuracy
"""

from vision.errors import ListingVisionError

__all__ = ["ExportMismatch", "GateError", "LossNotFinite", "PrecisionRefused", "RecipeError", "RunError", "RunStopped"]


class RecipeError(ListingVisionError):
    pass


class GateError(ListingVisionError):
    pass


class RunError(ListingVisionError):
    pass


class LossNotFinite(RunError):
    pass


class RunStopped(RunError):
    pass


class ExportMismatch(ListingVisionError):
    pass


class PrecisionRefused(ListingVisionError):
    pass
