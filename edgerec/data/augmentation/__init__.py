"""Augmentations for training images."""
