"""A run as one page for people: what was trained, on what, how good it is, and what to do next."""

from edgerec.report.build import write_report
from edgerec.report.model import RunReport

__all__ = ["RunReport", "write_report"]
