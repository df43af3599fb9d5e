"""Catalog of neural network architectures and their costs."""
