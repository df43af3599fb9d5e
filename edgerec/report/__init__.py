"""Write an HTML page about a run: its data, training, accuracy, mistakes, variants and recommended next steps."""

from edgerec.report.build import write_report
from edgerec.report.model import RunReport

__all__ = ["RunReport", "write_report"]
