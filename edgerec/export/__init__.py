"""From a variant of a run to the bundle that a device runs."""

from edgerec.export.exporter import ExportReport, export_bundle

__all__ = ["ExportReport", "export_bundle"]
