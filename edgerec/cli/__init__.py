"""Command-line interface, in which each module implements one command."""
