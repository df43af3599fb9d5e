"""The changes themselves, by what they change."""
