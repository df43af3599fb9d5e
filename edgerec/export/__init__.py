"""From a variant of a run, a finished .tflite, or several bundles, to the bundle that a device runs."""

from edgerec.export.anomaly import Novelty
from edgerec.export.ensembles import EnsembleReport, ensemble
from edgerec.export.exporter import ExportReport, export_bundle
from edgerec.export.importer import ImportReport, import_tflite

__all__ = ["EnsembleReport", "ExportReport", "ImportReport", "Novelty", "ensemble", "export_bundle", "import_tflite"]
