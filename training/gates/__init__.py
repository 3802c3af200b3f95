"""Release gates shipped with the package."""
