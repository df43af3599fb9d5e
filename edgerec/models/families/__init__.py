"""Architectures, one module for each family."""
