"""Other servers of the same decoder, model and response, to compare the gateway with.

The difference is the framework: each peer takes a serialised ClassifyListingRequest and returns a serialised response,
as the gateway does, so that the HTTP peers need no base64 and JSON. This file imports nothing, since the peers run in
an environment of their own.
"""
