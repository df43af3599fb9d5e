"""Catalog of architectures: cost, compression methods and supported targets."""
