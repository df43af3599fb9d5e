"""Write an HTML report for a run: data, training, accuracy, misclassified images, variants and next steps."""

from edgerec.report.content import ReportContent
from edgerec.report.report_page import write_report

__all__ = ["ReportContent", "write_report"]
