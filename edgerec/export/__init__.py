"""From a variant of a run, or a finished .tflite, to the bundle that a device runs."""

from edgerec.export.exporter import ExportReport, export_bundle
from edgerec.export.importer import ImportReport, import_tflite

__all__ = ["ExportReport", "ImportReport", "export_bundle", "import_tflite"]
