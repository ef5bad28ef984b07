"""flockwise."""
