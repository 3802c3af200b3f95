"""The service as HTTP/JSON, for callers without gRPC, and a page for people: a gRPC client of the gateway processes."""
