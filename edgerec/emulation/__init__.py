"""A bundle on the device's own userland, before it leaves: Debian for ARM, wheels, golden vectors, under qemu."""

from edgerec.emulation.proof import ProofReport, prove

__all__ = ["ProofReport", "prove"]
