"""A bundle on the device's own userland, before it leaves: Debian for ARM, wheels, golden vectors, under qemu."""

from edgerec.export.userland.proof import ProofReport, prove

__all__ = ["ProofReport", "prove"]
