"""Every error of the project that a user or an operator can act on.

ListingVisionError
├── TaxonomyError                 a taxonomy file that contradicts itself
├── ManifestError                 rows of a listing manifest that cannot be used
├── RecipeError                   a training recipe with a wrong value
├── GateError                     a release gate with a wrong value
├── RunError                      a training run that cannot start, go on or be read
│   └── LossNotFinite             a step whose loss is NaN or infinite
├── BundleError                   a model bundle that is incomplete or altered
├── DeviceCannotDecode            a device that has no JPEG decoder
├── ExportMismatch                an export that does not answer like the trained model
├── PrecisionRefused              another precision that answers too many photos less rightly
├── EngineError
│   ├── EngineUnavailable         the model cannot be reached now; try again later
│   ├── EngineBusy                the model's queue is full; try again later
│   └── EngineBroken              the model answers, but wrongly
├── BackfillError                 a backfill that cannot begin or go on
├── TritonNotInstalled            no Triton binary on this machine
│   └── TritonUnsupported         this machine cannot have one
└── PhotoError                    one photo that cannot be used; carries a stable `reason`
    ├── PhotoEmpty                PHOTO_EMPTY
    ├── PhotoTooManyBytes         PHOTO_TOO_MANY_BYTES
    ├── PhotoTooManyPixels        PHOTO_TOO_MANY_PIXELS
    ├── PhotoTooSmall             PHOTO_TOO_SMALL
    ├── PhotoNotAnImage           PHOTO_NOT_AN_IMAGE
    ├── PhotoTruncated            PHOTO_TRUNCATED
    ├── PhotoUnreadable           PHOTO_UNREADABLE
    ├── PhotoDecoderCrashed       PHOTO_DECODER_CRASHED
    ├── PhotoTimedOut             PHOTO_TIMEOUT
    └── PhotoNotFetched           PHOTO_NOT_FETCHED
"""

from collections.abc import Sequence

__all__ = [
    "BackfillError",
    "BundleError",
    "DeviceCannotDecode",
    "EngineBroken",
    "EngineBusy",
    "EngineError",
    "EngineUnavailable",
    "ExportMismatch",
    "GateError",
    "ListingVisionError",
    "LossNotFinite",
    "ManifestError",
    "PhotoDecoderCrashed",
    "PhotoEmpty",
    "PhotoError",
    "PhotoNotAnImage",
    "PhotoNotFetched",
    "PhotoTimedOut",
    "PhotoTooManyBytes",
    "PhotoTooManyPixels",
    "PhotoTooSmall",
    "PhotoTruncated",
    "PhotoUnreadable",
    "PrecisionRefused",
    "RecipeError",
    "RunError",
    "TaxonomyError",
    "TritonNotInstalled",
    "TritonUnsupported",
]


class ListingVisionError(Exception):
    """The root: its message says what happened, with which value, and what to do."""


class TaxonomyError(ListingVisionError):
    pass


class ManifestError(ListingVisionError):
    """Carries every problem found, not only the first one, in `problems`."""

    _SHOWN = 20

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        shown = [f"  {problem}" for problem in self.problems[: self._SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"  … and {hidden} more")
        super().__init__("\n".join([headline, *shown]))


class RecipeError(ListingVisionError):
    pass


class GateError(ListingVisionError):
    pass


class RunError(ListingVisionError):
    pass


class LossNotFinite(RunError):
    pass


class BundleError(ListingVisionError):
    pass


class ExportMismatch(ListingVisionError):
    pass


class PrecisionRefused(ListingVisionError):
    pass


class DeviceCannotDecode(ListingVisionError):
    pass


class EngineError(ListingVisionError):
    pass


class EngineUnavailable(EngineError):
    pass


class EngineBusy(EngineError):
    pass


class EngineBroken(EngineError):
    pass


class BackfillError(ListingVisionError):
    pass


class TritonNotInstalled(ListingVisionError):
    pass


class TritonUnsupported(TritonNotInstalled):
    pass


class PhotoError(ListingVisionError):
    """One photo that cannot be used. `reason` is part of the public contract and never changes."""

    reason: str = "PHOTO_UNREADABLE"


class PhotoEmpty(PhotoError):
    reason = "PHOTO_EMPTY"


class PhotoTooManyBytes(PhotoError):
    reason = "PHOTO_TOO_MANY_BYTES"


class PhotoTooManyPixels(PhotoError):
    reason = "PHOTO_TOO_MANY_PIXELS"


class PhotoTooSmall(PhotoError):
    reason = "PHOTO_TOO_SMALL"


class PhotoNotAnImage(PhotoError):
    reason = "PHOTO_NOT_AN_IMAGE"


class PhotoTruncated(PhotoError):
    reason = "PHOTO_TRUNCATED"


class PhotoUnreadable(PhotoError):
    reason = "PHOTO_UNREADABLE"


class PhotoDecoderCrashed(PhotoError):
    """The native decoder crashed on it, in a process of its own, or it takes more memory than there is."""

    reason = "PHOTO_DECODER_CRASHED"


class PhotoTimedOut(PhotoError):
    """Decoding it took longer than allowed, in a process of its own."""

    reason = "PHOTO_TIMEOUT"


class PhotoNotFetched(PhotoError):
    """Its URI leads to nothing that the service may read, or not in time."""

    reason = "PHOTO_NOT_FETCHED"
