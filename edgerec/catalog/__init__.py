"""Catalog of the architectures: cost, compression methods and targets."""
