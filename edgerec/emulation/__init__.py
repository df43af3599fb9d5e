"""Verify a bundle in an emulated ARM Debian system (QEMU) before copying it to a device."""

from edgerec.emulation.emulated_verification import EmulationReport, verify_emulated

__all__ = ["EmulationReport", "verify_emulated"]
