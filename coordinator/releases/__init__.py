"""Releases of models: signed, staged, and revocable."""
