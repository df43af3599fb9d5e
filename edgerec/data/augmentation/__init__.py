"""Augmentations, one module per kind."""
