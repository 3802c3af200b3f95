"""Errors that a user or an operator can act on: the root, and those of what a model is.

`training.errors` and `serving.errors` add their own.

ListingVisionError
├── TaxonomyError                 a taxonomy file that contradicts itself
├── ManifestError                 rows of a listing manifest that cannot be used
├── FeederError                   a process that reads and decodes photos ends again and again
├── BundleError                   a model bundle that is incomplete or altered
├── DeviceDecoderUnavailable  a device that has no JPEG decoder
├── EngineError
│   ├── EngineUnavailable         the model cannot be reached now; try again later
│   ├── EngineBusy                the model's queue is full; try again later
│   └── EngineBroken              the model answers, but wrongly
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
    ├── PhotoNotFetched           PHOTO_NOT_FETCHED
    ├── PhotoFetchTimedOut        PHOTO_FETCH_TIMEOUT: not the photo's fault, try again
    └── PhotoServiceBusy          PHOTO_SERVICE_BUSY: not the photo's fault, try again
"""

from collections.abc import Sequence

__all__ = [
    "BundleError",
    "DeviceDecoderUnavailable",
    "EngineBroken",
    "EngineBusy",
    "EngineError",
    "EngineUnavailable",
    "FeederError",
    "ListingVisionError",
    "ManifestError",
    "PhotoDecoderCrashed",
    "PhotoEmpty",
    "PhotoError",
    "PhotoFetchTimedOut",
    "PhotoNotAnImage",
    "PhotoNotFetched",
    "PhotoServiceBusy",
    "PhotoTimedOut",
    "PhotoTooManyBytes",
    "PhotoTooManyPixels",
    "PhotoTooSmall",
    "PhotoTruncated",
    "PhotoUnreadable",
    "TaxonomyError",
]


class ListingVisionError(Exception):
    """Root of all errors. The message says what happened, which value, and what to do."""


class TaxonomyError(ListingVisionError):
    pass


class ManifestError(ListingVisionError):
    """Carries every problem found, not only the first one, in `problems`."""

    _MAX_SHOWN = 20

    def __init__(self, headline: str, problems: Sequence[str] = ()) -> None:
        self.problems = tuple(problems)
        shown = [f"  {problem}" for problem in self.problems[: self._MAX_SHOWN]]
        hidden = len(self.problems) - len(shown)
        if hidden > 0:
            shown.append(f"  … and {hidden} more")
        super().__init__("\n".join([headline, *shown]))


class BundleError(ListingVisionError):
    pass


class DeviceDecoderUnavailable(ListingVisionError):
    pass


class EngineError(ListingVisionError):
    pass


class EngineUnavailable(EngineError):
    pass


class EngineBusy(EngineError):
    pass


class EngineBroken(EngineError):
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
    """The native decoder crashed in its worker process, or needed more memory than allowed."""

    reason = "PHOTO_DECODER_CRASHED"


class PhotoTimedOut(PhotoError):
    """Decoding this photo costs more CPU time than allowed."""

    reason = "PHOTO_TIMEOUT"


class PhotoNotFetched(PhotoError):
    """The URI could not be fetched: not found, or access denied."""

    reason = "PHOTO_NOT_FETCHED"


class PhotoFetchTimedOut(PhotoError):
    """The server of the URI did not answer in time, or failed; a retry may succeed."""

    reason = "PHOTO_FETCH_TIMEOUT"


class PhotoServiceBusy(PhotoError):
    """The machine had no time to decode the photo; a retry may succeed."""

    reason = "PHOTO_SERVICE_BUSY"


class FeederError(ListingVisionError):
    pass
