"""A request's way through one gateway process."""
