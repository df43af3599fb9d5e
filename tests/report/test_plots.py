"""Plots: bars with confidence intervals, readable axes, labels that do not overlap, legends with every color."""

from __future__ import annotations

import itertools

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from edgerec.catalog.architectures import architectures
from edgerec.catalog.plot import architectures_plot


@pytest.fixture
def saved_figures(monkeypatch) -> list[matplotlib.figure.Figure]:
    """Collect the figures that are saved."""
    figures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def savefig(self, *arguments, **options):
        figures.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def boxes(texts, figure):
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    return [matplotlib.text.Text.get_window_extent(text, renderer) for text in texts]


def readable(axis, figure) -> bool:
    """Return whether the axis has at least four visible tick labels."""
    figure.draw_without_rendering()
    low, high = sorted(axis.get_view_interval())
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    return sum(bool(tick.label1.get_text()) and low <= tick.get_loc() <= high for tick in ticks) >= 4


def test_architecture_names_do_not_overlap(saved_figures, tmp_path):
    architectures_plot(architectures(), tmp_path / "models.png")
    [figure] = saved_figures
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    assert len(texts) == len(architectures())
    for (first, box), (second, other_box) in itertools.combinations(zip(texts, boxes(texts, figure), strict=True), 2):
        assert not box.overlaps(other_box), f"{first.get_text()} and {second.get_text()}"
    assert readable(figure.axes[0].xaxis, figure)
    assert readable(figure.axes[0].yaxis, figure)


def test_labels_of_crowded_points_do_not_overlap():
    from edgerec.utils.figures import label_points, new_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    points = [(1 + 0.01 * n, 1.0) for n in range(8)]
    axes.plot(*zip(*points, strict=True), "o")
    axes.set(xlim=(0, 2), ylim=(0, 2))
    label_points(axes, points, [f"architecture_{n}" for n in range(8)], fontsize=8)
    for box, other in itertools.combinations(boxes(axes.texts, figure), 2):
        assert not box.overlaps(other)


@pytest.mark.parametrize("span", [(110, 190), (95, 1300), (3e-4, 2e-3), (1, 1e9), (0.0123, 0.0127)])
def test_logarithmic_axis_has_enough_tick_labels(span):
    from edgerec.utils.figures import label_log_axis, new_figure

    figure = new_figure(6, 4)
    axes = figure.subplots()
    axes.plot(span, span)
    axes.set(xscale="log", yscale="log")
    label_log_axis(axes.xaxis)
    figure.draw_without_rendering()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert 3 <= len(labels) <= 10
    assert len(set(labels)) == len(labels)
    assert not [label for label in axes.get_xticklabels(minor=True) if label.get_text()]
    for one, other in itertools.pairwise(boxes(axes.get_xticklabels(), figure)):
        assert not one.overlaps(other)


def test_error_histogram_has_a_readable_axis(saved_figures, tmp_path):
    from edgerec.train.anomaly import plot_error_histogram

    errors = np.random.default_rng(0).uniform(0.0012, 0.0048, 200)
    plot_error_histogram(errors, 0.005, tmp_path / "errors.png")
    assert readable(saved_figures[0].axes[0].xaxis, saved_figures[0])


def test_layer_bars_name_both_colors(saved_figures, tmp_path):
    from edgerec.compress.compression_plots import layer_bars

    ratios = [(30.0, 32.0, 35.0), (8.0, 9.0, 20.0)]
    layer_bars(["a", "b"], ratios, [False, True], (20.0, 80.0), "title", tmp_path / "layers.png")
    [figure] = saved_figures
    bars = {to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches}
    named = {
        to_hex(handle.patches[0].get_facecolor())
        for handle in figure.axes[0].get_legend_handles_labels()[0]
        if hasattr(handle, "patches")
    }
    assert len(bars) == 2
    assert named == bars


def test_study_has_readable_axes_and_a_complete_legend(saved_figures, tmp_path):
    from types import SimpleNamespace

    from edgerec.tuning.results import TrialRow
    from edgerec.tuning.search_plots import draw_study

    rows = [
        TrialRow(n, "complete", 0.6 + 0.01 * n, 12 * 1.5**n, 12000 + 16000 * n, 12000 + 15000 * n, 1, 1, 1, 1.0, "", {})
        for n in range(7)
    ]
    plan = SimpleNamespace(objectives=("accuracy", "ms"), limits=SimpleNamespace(to_dict=lambda: {"ms": 60}), on="this")
    draw_study(rows, rows, plan, tmp_path / "study.png")
    [figure] = saved_figures
    assert [axes.get_xscale() for axes in figure.axes[1:]] == ["log", "log", "log"]
    assert all(readable(axes.xaxis, figure) for axes in figure.axes[1:])
    lines = {line.get_color() for axes in figure.axes for line in axes.get_lines() if line.get_linestyle() != "None"}
    named = {line.get_color() for line in figure.legends[0].get_lines() if line.get_linestyle() != "None"}
    assert named == lines
    assert all(line.get_label()[0] != "_" for axes in figure.axes for line in axes.get_lines())


def test_comparison_shows_intervals_sizes_and_times(saved_figures, tmp_path):
    from edgerec.compress.compare import VariantRow
    from edgerec.compress.compression_plots import comparison_plot
    from edgerec.train.confidence_calibration import wilson_interval

    low, high = wilson_interval(0.98, 250)
    assert (low, high) == pytest.approx((0.9541, 0.9914), abs=1e-4)
    row = {"method": "ptq", "drop_points": 0.0, "agreement": 1.0, "sparsity": 0.0, "top1_low": low, "top1_high": high}
    rows = [
        VariantRow(
            variant="float32", top1=0.98, size_bytes=491362, gzip_bytes=453326, median_ms=0.033, p95_ms=0.04, **row
        ),
        VariantRow(
            variant="int8", top1=0.98, size_bytes=128874, gzip_bytes=120563, median_ms=0.016, p95_ms=0.02, **row
        ),
        VariantRow(
            variant="int16x8", top1=0.98, size_bytes=131114, gzip_bytes=122245, median_ms=1.3, p95_ms=13.0, **row
        ),
    ]
    comparison_plot(0.98, rows, tmp_path / "compare.png")
    accuracy, size, time = saved_figures[0].axes
    [bars] = [one for one in accuracy.containers if hasattr(one, "errorbar") and one.errorbar is None]
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx([98, 98, 98])
    [intervals] = [one for one in accuracy.containers if getattr(one, "has_xerr", False)]
    segments = intervals.lines[2][0].get_segments()
    assert np.allclose([segment[:, 0] for segment in segments], [[100 * low, 100 * high]] * 3)
    assert [bar.get_width() for bar in size.containers[0]] == pytest.approx(
        [491362 / 1024, 128874 / 1024, 131114 / 1024]
    )
    assert [text.get_text() for text in size.texts][1] == "128,874 (120,563)"
    assert time.texts[2].get_text() == "1.3 (13) (bar cut)"
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["float32", "int8", "int16x8"]
    colors = {to_hex(patch.get_facecolor()) for axes in saved_figures[0].axes for patch in axes.patches}
    legend = {to_hex(patch.get_facecolor()) for patch in saved_figures[0].legends[0].get_patches()}
    assert legend == colors
    saved_figures[0].draw_without_rendering()
    assert "axis starts at" in accuracy.get_xlabel()


def test_comparison_needs_no_times():
    from edgerec.compress.compression_plots import comparison_figure
    from edgerec.report.content import VariantMetrics

    values = {
        "method": "ptq",
        "precision": "int8",
        "drop_points": 0.0,
        "max_drop": 1.0,
        "agreement": 1.0,
        "sparsity": 0.0,
    }
    rows = [
        VariantMetrics(
            "int8",
            top1=0.4,
            top1_low=0.3,
            top1_high=0.5,
            size_bytes=9,
            gzip_bytes=5,
            median_ms=None,
            p95_ms=None,
            chosen=True,
            exported=("rpi",),
            **values,
        )
    ]
    accuracy, _ = comparison_figure(0.4, rows, exported=["int8"]).axes
    assert accuracy.get_yticklabels()[0].get_text() == "int8 (exported)"
    assert accuracy.get_xlim()[0] == 0


def test_worst_mistakes_show_predicted_and_true_label(saved_figures, tmp_path):
    from types import SimpleNamespace

    from edgerec.train.training_plots import worst_mistakes

    dataset = SimpleNamespace(
        classes=np.array([1, 0]), labels=("nine", "eight"), images=np.zeros((2, 8, 8, 1), np.uint8)
    )
    scores = np.array([[0.83, 0.17], [0.9, 0.1]], np.float32)
    worst_mistakes(dataset, np.array([0, 1]), scores, tmp_path / "worst.png")
    assert saved_figures[0].axes[0].get_title() == "predicted nine 83 %,\nactually eight"
    assert "of the float model" in saved_figures[0].get_suptitle()


def test_fallback_fonts_draw_other_scripts(saved_figures, tmp_path, monkeypatch, caplog):
    """A font that contains the characters is used, and there is no warning."""
    from pathlib import Path

    import edgerec.utils.figures as figures
    from edgerec.utils.fonts import Font

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "STIXGeneral.ttf"
    # U+1D49C is in the STIX font and not in matplotlib's default font.
    monkeypatch.setattr(figures, "installed_fonts", lambda: (Font(path, 0, "STIX", True, ((0x1D49C, 0x1D49C),)),))
    figure = figures.new_figure(3, 2)
    text = figure.text(0.1, 0.5, "class \U0001d49c")
    figures.save_figure(figure, tmp_path / "text.png")
    assert text.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]
    assert not caplog.records
