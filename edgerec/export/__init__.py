"""Create bundles from a variant of a run, from an existing .tflite file, or from several other bundles."""

from edgerec.export.anomaly import Novelty
from edgerec.export.ensembles import EnsembleReport, ensemble
from edgerec.export.exporter import ExportReport, export_bundle
from edgerec.export.importer import ImportReport, import_tflite

__all__ = ["EnsembleReport", "ExportReport", "ImportReport", "Novelty", "ensemble", "export_bundle", "import_tflite"]
