"""Two models on the same listings, and the release gate."""
