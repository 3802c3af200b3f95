"""The client library: it needs gRPC, protobuf and googleapis-common-protos, and nothing else of this project.

with ListingVisionClient("127.0.0.1:50051") as client:
    suggestion = client.classify([Path("front.jpg"), Path("label.jpg")])

Names are imported when they are first used: the wire format and the limits need no gRPC.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from listing_vision_client.aio import AsyncListingVisionClient
    from listing_vision_client.channel import Access, ClientTls
    from listing_vision_client.client import ListingVisionClient
    from listing_vision_client.enums import (
        Action,
        BrandKind,
        ExplanationTarget,
        FormField,
        FormTreatment,
        NotPrefilledReason,
        PhotoErrorReason,
        Stage,
        SuggestionIdStatus,
    )
    from listing_vision_client.errors import CallFailed, ErrorDetails, FieldViolation
    from listing_vision_client.requests import BrandChoice, ListingToClassify
    from listing_vision_client.results import Explanation, ListingSuggestion, OutcomeReceipt, ServingModel, Taxonomy
    from listing_vision_client.stream import ListingResult

__all__ = [
    "Access",
    "Action",
    "AsyncListingVisionClient",
    "BrandChoice",
    "BrandKind",
    "CallFailed",
    "ClientTls",
    "ErrorDetails",
    "Explanation",
    "ExplanationTarget",
    "FieldViolation",
    "FormField",
    "FormTreatment",
    "ListingResult",
    "ListingSuggestion",
    "ListingToClassify",
    "ListingVisionClient",
    "NotPrefilledReason",
    "OutcomeReceipt",
    "PhotoErrorReason",
    "ServingModel",
    "Stage",
    "SuggestionIdStatus",
    "Taxonomy",
]

_MODULES = {
    "listing_vision_client.aio": ("AsyncListingVisionClient",),
    "listing_vision_client.channel": (
        "Access",
        "ClientTls",
    ),
    "listing_vision_client.client": ("ListingVisionClient",),
    "listing_vision_client.enums": (
        "Action",
        "BrandKind",
        "ExplanationTarget",
        "FormField",
        "FormTreatment",
        "NotPrefilledReason",
        "PhotoErrorReason",
        "Stage",
        "SuggestionIdStatus",
    ),
    "listing_vision_client.errors": (
        "CallFailed",
        "ErrorDetails",
        "FieldViolation",
    ),
    "listing_vision_client.requests": (
        "BrandChoice",
        "ListingToClassify",
    ),
    "listing_vision_client.results": (
        "Explanation",
        "ListingSuggestion",
        "OutcomeReceipt",
        "ServingModel",
        "Taxonomy",
    ),
    "listing_vision_client.stream": ("ListingResult",),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'listing_vision_client' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
