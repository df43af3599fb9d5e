"""Version of edgerec."""

__version__ = "0.1.0"
