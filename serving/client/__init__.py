"""The client library."""

from serving.client.client import (
    Access,
    AsyncListingVisionClient,
    CallFailed,
    ClientTls,
    ListingToClassify,
    ListingVisionClient,
)

__all__ = ["Access", "AsyncListingVisionClient", "CallFailed", "ClientTls", "ListingToClassify", "ListingVisionClient"]
