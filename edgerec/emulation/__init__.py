"""Verify a bundle in an emulated Debian system for ARM (QEMU) before copying the bundle to a device."""

from edgerec.emulation.emulated_verification import EmulationReport, verify_emulated

__all__ = ["EmulationReport", "verify_emulated"]
