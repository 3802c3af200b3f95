"""The console script: `training` and `serving` do not know each other, this package knows both."""
