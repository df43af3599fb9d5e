"""Render a report as HTML.

User data is escaped, and a Content Security Policy blocks network access.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import numpy as np

from edgerec._version import __version__
from edgerec.report import charts
from edgerec.report.content import ReportContent
from edgerec.report.images import EmbeddedImage, PageImages, matrix_image
from edgerec.report.scoring import FLOAT
from edgerec.utils.optional import require
from edgerec.utils.text import printable

# The confusion matrix is shown as an image rather than a table if there are more classes than this.
MAX_TABLE_CLASSES = 20
# Column headers of the confusion matrix are rotated if a label has more characters than this.
MAX_HORIZONTAL_LABEL = 3


def _printable(value: Any) -> Any:
    """Escape unprintable characters except line breaks, which recipes contain."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def render(report: ReportContent, images: PageImages) -> str:
    """Return the report page as HTML."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "size": _size, "duration": _duration, "ms": _ms, "change": _change}
    script = _template("report.js")
    return environment.get_template("report.html").render(
        report=report,
        images=images,
        version=__version__,
        script=require("markupsafe").Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        shipped=report.chosen,
        max_images=max((row.train or 0 for row in report.classes), default=0),
        matrix=_matrix(report),
        upright=any(len(row.label) > MAX_HORIZONTAL_LABEL for row in report.classes),
        float_calibration=next((row for row in report.calibration if row.model == FLOAT), None),
        **_figures(report),
    )


def _template(name: str) -> str:
    return resources.files(__package__).joinpath("template", name).read_text(encoding="utf-8")


def _figures(report: ReportContent) -> dict[str, Any]:
    """Return the SVG charts, marked as safe so that Jinja does not escape them."""
    markup = require("markupsafe").Markup
    shown = {FLOAT, report.chosen.variant if report.chosen else FLOAT}
    return {
        "curves": [markup(text) for text in charts.curves(report)] if report.history else [],
        "diagrams": [
            (row, markup(charts.reliability_diagram(row))) for row in report.calibration if row.model in shown
        ],
        "comparison": markup(charts.comparison(report, report.top1.value))
        if report.top1 and len(report.variants) > 1
        else "",
    }


def _matrix(report: ReportContent) -> EmbeddedImage | None:
    """Return the confusion matrix as an image, or None if it is small enough to be shown as a table."""
    if len(report.confusion) <= MAX_TABLE_CLASSES:
        return None
    counts = np.array(report.confusion, np.float64)
    return matrix_image(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def _percent(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}%}"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count / 1024:,.0f} KiB" if count < 1024**2 else f"{count / 1024**2:,.1f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def _change(drop_points: float) -> str:
    """Format a change in accuracy in percentage points, with a typographic minus sign (U+2212)."""
    return f"{round(-drop_points, 2) + 0:+.2f}".replace("-", "−")
