"""A run as one page for people: what was trained, on what, how good it is, and what to do next."""

from edgerec.export.page.facts import RunReport
from edgerec.export.page.making import report

__all__ = ["RunReport", "report"]
