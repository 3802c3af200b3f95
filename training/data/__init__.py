"""Listing manifests: import, check, split, shard, synthetic data, label errors."""
