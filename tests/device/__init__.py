"""Tests that boot a complete emulated device."""
