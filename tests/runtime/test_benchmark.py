"""The benchmark of a bundle: plausible values, its plot, and the profile of the operators."""

from __future__ import annotations

import json
import shutil
import weakref

import numpy as np
import pytest

from edgerec import Bundle
from edgerec.errors import BundleError
from edgerec.runtime import thermal
from edgerec.runtime.benchmark import BenchmarkReport, benchmark, throttling_reasons
from edgerec.runtime.interpreter import Fingerprint
from edgerec.runtime.latency_percentiles import StageLatency
from edgerec.runtime.operator_profile import profile_operators
from edgerec.runtime.thermal import Health
from edgerec.tflite.flatbuffer import read_graph
from tests.conftest import error_line


def test_benchmark_values_are_plausible(bundle, tmp_path, edgerec):
    plot = tmp_path / "benchmark.png"
    result = edgerec("benchmark", bundle, "--seconds", "0.5", "--plot", plot, "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    stages = {stage["name"]: stage for stage in value["stages"]}
    assert list(stages) == ["preprocess", "invoke", "decision", "together"]
    for stage in stages.values():
        assert 0 < stage["p50_ms"] <= stage["p95_ms"] <= stage["p99_ms"]
    parts = sum(stages[name]["p50_ms"] for name in ("preprocess", "invoke", "decision"))
    assert 0.3 * parts < stages["together"]["p50_ms"] < 3 * parts
    assert value["images"] >= 50
    assert 0.05 < value["cold_start_s"] < 100
    assert 20 * 2**20 < value["peak_memory_bytes"] < 2**30
    graph = read_graph(Bundle.open(bundle).model)
    assert [o["op"] for o in value["operators"]] == [operator.name for operator in graph.operators]
    assert sum(o["part"] for o in value["operators"]) == pytest.approx(1, abs=0.01)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert value["source"] == ""


def test_benchmark_prints_text_without_json_option(bundle, edgerec):
    result = edgerec("benchmark", bundle, "--seconds", "0.2", "--no-operators")
    assert result.returncode == 0, result.stderr
    assert "images per second" in result.stdout
    assert "process start to the first prediction" in result.stdout
    assert "operators" not in result.stdout


def test_times_of_all_operators_are_measured(bundle):
    content = Bundle.open(bundle).model
    times = profile_operators([content], threads=1, budget_s=1.0)
    assert [t.index for t in times] == list(range(len(times)))
    assert {"CONV_2D", "FULLY_CONNECTED"} <= {t.op for t in times}
    assert sum(t.ms for t in times) > 0
    assert all(t.ms >= 0 for t in times)


def test_latency_of_a_source_starts_at_the_grab_of_the_frame(bundle, video, edgerec):
    result = edgerec("benchmark", bundle, "--source", video, "--seconds", "0.2", "--no-operators", "--json")
    assert result.returncode == 0, result.stderr
    value = json.loads(result.stdout)
    assert value["images"] == 29  # of 30; the first is not measured
    assert value["source"] == str(video)
    stages = {stage["name"]: stage["p50_ms"] for stage in value["stages"]}
    assert stages["end to end"] >= stages["together"]
    fast_source = edgerec("benchmark", bundle, "--source", "synthetic:64x48@0", "--seconds", "0.2", "--no-operators")
    assert "limited by the source" in fast_source.stdout, fast_source.stderr


def report(*p99_ms, source="", operators=()):
    cool = Health(40.0, 2400.0, None)
    stages = tuple(StageLatency(f"stage {number}", min(1.0, ms), min(2.0, ms), ms) for number, ms in enumerate(p99_ms))
    machine = Fingerprint("test", "1", "x86_64", "cpu")
    return BenchmarkReport(
        "runs/signs", "full-int8", machine, 1, "", stages, 100.0, 50, 0.5, 2**26, cool, cool, (), operators, source
    )


def draw(figure):
    """Draw the figure; return the bounding box of each text, and the bounding boxes of the bars."""
    figure.canvas.draw()
    axes = figure.axes[0]
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts}
    texts["legend"] = axes.get_legend().get_window_extent()
    return texts, [bar.get_window_extent() for bar in axes.patches]


@pytest.mark.parametrize("p99_ms", [(2.5, 3.0, 3.9), (2.5, 3.0, 1234.5), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0)])
def test_texts_of_the_plot_do_not_overlap_the_bars(p99_ms):
    pytest.importorskip("matplotlib")
    from edgerec.runtime.benchmark_plot import benchmark_figure

    figure = benchmark_figure(report(*p99_ms))
    texts, bars = draw(figure)
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["p50", "p95", "p99"]
    for text, box in texts.items():
        assert not any(box.x0 < bar.x1 and bar.x0 < box.x1 and box.y0 < bar.y1 and bar.y0 < box.y1 for bar in bars), (
            text
        )
        assert box.x1 <= figure.bbox.x1, text


def test_bar_of_an_outlier_is_cut():
    pytest.importorskip("matplotlib")
    from edgerec.runtime.benchmark_plot import axis_end_ms, benchmark_figure

    even, outlier = report(2.5, 3.0, 3.9), report(2.5, 3.0, 1234.5)
    assert axis_end_ms(even.stages) == 3.9
    assert axis_end_ms(outlier.stages) == 3.0
    assert not any("cut" in text for text in draw(benchmark_figure(even))[0])
    texts, bars = draw(benchmark_figure(outlier))
    assert any("1,234 (cut)" in text for text in texts)
    widths = sorted(bar.width for bar in bars)
    assert widths[0] > 0.3 * widths[-1]


def test_plot_title_names_the_source():
    pytest.importorskip("matplotlib")
    from edgerec.runtime.benchmark_plot import LONGEST_NAME, benchmark_figure

    def title(source):
        return benchmark_figure(report(2.5, source=source)).get_suptitle().splitlines()[0]

    assert title("rtsp://camera.example/live") == "signs (full-int8), measured on rtsp://camera.example/live"
    assert title("") == "signs (full-int8), measured on its golden images"
    long_title = title("rtsp://camera.example/" + "x" * 500 + "/live.mp4")
    assert "rtsp://camera.example/" in long_title
    assert long_title.endswith("x/live.mp4")
    assert len(long_title) < 2 * LONGEST_NAME
    benchmark_figure(report(2.5, source="a$b_$\\frac{")).canvas.draw()  # raises an error if Matplotlib parses a formula


def test_benchmark_refuses_a_source_that_does_not_exist(bundle, tmp_path, edgerec):
    assert "nothing.mp4" in error_line(edgerec("benchmark", bundle, "--source", tmp_path / "nothing.mp4"))


def test_benchmark_accepts_a_zip(bundle, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", bundle)
    report = benchmark(archive, seconds=0.1, operators=False)
    assert isinstance(report, BenchmarkReport)
    assert report.cold_start_s > 0


def test_benchmark_refuses_a_folder_without_a_bundle(tmp_path, edgerec):
    assert "no bundle" in error_line(edgerec("benchmark", tmp_path)) or "manifest" in error_line(
        edgerec("benchmark", tmp_path)
    )
    with pytest.raises(BundleError):
        benchmark(tmp_path)


def test_throttling_and_temperature_are_reported(tmp_path, monkeypatch):
    cool, slow = Health(40.0, 2400.0, None), Health(85.0, 1500.0, ("throttled",))
    assert throttling_reasons(cool, cool) == ()
    assert throttling_reasons(cool, slow) == ("throttled", "the CPU clock fell from 2400 to 1500 MHz")
    for number, milli in enumerate(("41000", "67500", "nonsense", "-274000")):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "type").write_text("cpu-thermal")
        (zone / "temp").write_text(milli)
    program = tmp_path / "vcgencmd"
    program.write_text("#!/bin/sh\necho throttled=0x50005\n")
    program.chmod(0o755)
    monkeypatch.setattr(thermal, "_ZONES", tmp_path)
    monkeypatch.setattr(thermal, "_CLOCKS", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    state = thermal.read_health()
    assert state.temperature_c == 67.5
    assert state.clock_mhz is None
    assert state.throttled == ("under-voltage", "throttled")
    program.write_text("#!/bin/sh\necho broken\n")
    assert thermal.read_health().throttled is None


def test_number_of_open_truncated_models_is_limited(bundle, monkeypatch):
    from edgerec.runtime import operator_profile
    from edgerec.runtime.interpreter import open_interpreter

    open_models, counts = weakref.WeakSet(), []

    def recording_open_interpreter(content, **options):
        interpreter = open_interpreter(content, **options)
        open_models.add(interpreter)
        counts.append(len(open_models))
        return interpreter

    monkeypatch.setattr(operator_profile, "open_interpreter", recording_open_interpreter)
    content = Bundle.open(bundle).model
    monkeypatch.setattr(operator_profile, "OPEN_BYTES", 4 * len(content))  # as for a large model
    times = profile_operators([content, content], threads=1, budget_s=0.0)
    assert [(t.model, t.index) for t in times] == [(m, i) for m in (0, 1) for i in range(len(times) // 2)]
    assert sum(t.part for t in times) == pytest.approx(1, abs=0.01)
    assert max(counts) <= 3 < len(read_graph(content).operators)


def test_longest_truncated_model_has_the_output_of_the_model(bundle, monkeypatch):
    from edgerec.runtime import operator_profile
    from edgerec.runtime.interpreter import open_interpreter

    content, truncated = Bundle.open(bundle).model, []
    monkeypatch.setattr(
        operator_profile, "open_interpreter", lambda m, **k: truncated.append(m) or open_interpreter(m, **k)
    )
    profile_operators([content], threads=1, budget_s=0.0)
    outputs = []
    for model in (content, max(truncated, key=lambda model: len(read_graph(model).operators))):
        interpreter = open_interpreter(model)
        details = interpreter.get_input_details()[0]
        pixels = np.random.default_rng(3).integers(0, 256, details["shape"]).astype(np.uint8)
        interpreter.set_tensor(details["index"], pixels)
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))
    assert np.array_equal(*outputs)
