"""How a model is served: Triton model repository, Triton client, gRPC gateway, client library."""
