"""Errors of serving that an operator can act on.

ListingVisionError
├── StorageError                  a stored file that is damaged, or a folder that another process has locked
├── BackfillError                 a backfill that cannot start or resume
└── TritonNotInstalled            no Triton binary on this machine
    └── TritonUnsupported         this machine cannot have one
"""

from vision.errors import ListingVisionError

__all__ = ["BackfillError", "StorageError", "TritonNotInstalled", "TritonUnsupported"]


class StorageError(ListingVisionError):
    pass


class BackfillError(ListingVisionError):
    pass


class TritonNotInstalled(ListingVisionError):
    pass


class TritonUnsupported(TritonNotInstalled):
    pass
