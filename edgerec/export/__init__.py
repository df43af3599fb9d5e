"""Create bundles from runs, from existing .tflite files, or from several bundles (an ensemble)."""

from edgerec.export.ensembles import EnsembleReport, ensemble
from edgerec.export.exporter import ExportReport, export_bundle
from edgerec.export.importer import ImportReport, import_tflite
from edgerec.export.novelty import Novelty

__all__ = ["EnsembleReport", "ExportReport", "ImportReport", "Novelty", "ensemble", "export_bundle", "import_tflite"]
