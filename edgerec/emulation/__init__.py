"""Verify a bundle in an emulated Debian system for ARM (QEMU), before it is copied to a device."""

from edgerec.emulation.proof import ProofReport, prove

__all__ = ["ProofReport", "prove"]
