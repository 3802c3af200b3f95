"""Photos decoded in worker processes that a photo may crash."""
