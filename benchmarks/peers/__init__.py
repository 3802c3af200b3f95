"""Other ways to serve the same decode, model and answer, for the gateway to be measured against.

What a call costs there is what the framework costs: each peer takes the bytes of a ClassifyListingRequest and gives the
bytes of its response, as the gateway does, which spares the HTTP peers base64 and JSON. This file imports nothing: the
peers run in an environment of their own.
"""
