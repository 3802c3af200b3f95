"""Photos decoded in processes that a photo may crash."""
