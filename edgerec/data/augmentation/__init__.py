"""Augmentations for training images, one module per kind."""
