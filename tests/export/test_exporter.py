"""Export of a variant as a bundle, completely or not at all, for each target."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgerec import Recipe, export_bundle, fit, verify
from edgerec.contract.bundle import Bundle
from edgerec.errors import OutputExistsError, TargetError
from edgerec.tflite import edgetpu
from edgerec.tflite.edgetpu import compiler
from edgerec.tflite.flatbuffer import read_graph
from tests.conftest import error_line


def test_rpi_bundle_contains_the_commands(bundle):
    readme = (bundle / "README.md").read_text()
    block = readme.split("```sh\n")[1].split("```")[0]
    assert block.strip().splitlines() == [
        "python3 -m venv --system-site-packages .venv && . .venv/bin/activate",
        "pip install --find-links wheels -r requirements.txt",
        "edgerec camera . --source auto --headless",
    ]
    assert "## Model card" in readme
    assert "| int8-qat |" in readme
    requirements = (bundle / "requirements.txt").read_text()
    assert "edgerec[headless,web,mqtt,prometheus,gpio]==" in requirements
    assert "ai-edge-litert==" in requirements


def test_manifest_contains_the_provenance(bundle, run):
    manifest = Bundle.open(bundle).manifest
    assert manifest.provenance["recipe"] == run.recipe.to_dict()
    assert manifest.provenance["data_digest"] == run.split_record["digest"]
    assert manifest.provenance["versions"]["tensorflow"]
    assert manifest.metrics["forms"] == run.variants()["int8-qat"]["forms"]


def test_bundle_contains_no_private_paths(image_folder, tmp_path):
    recipe = Recipe().override({"data.source": str(image_folder), "train.epochs": 1})
    trained = fit(recipe, tmp_path / "run")
    bundle = export_bundle(trained, "desktop", out=tmp_path / "bundle").bundle
    for file in Path(bundle).rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file


def test_export_uses_the_max_drop_of_quantize(run, tmp_path):
    report = run.variant("int8-qat") / "report.json"
    before = report.read_text()
    values = json.loads(before) | {"max_drop": 50.0}
    values["forms"][-1]["top1"] -= 0.2
    try:
        report.write_text(json.dumps(values))
        assert export_bundle(run, "desktop", variant="int8-qat", out=tmp_path / "b").top1 < 0.9
    finally:
        report.write_text(before)


def test_export_chooses_the_int8_variant_with_the_best_validation_accuracy(run, tmp_path):
    variants = {name: report for name, report in run.variants().items() if name != "float32"}
    best = max(variants.values(), key=lambda report: report["val_top1"])
    assert export_bundle(run, "desktop", out=tmp_path / "b").variant == best["variant"]


def test_float32_variant_can_be_exported(run, tmp_path):
    report = export_bundle(run, "desktop", variant="float32", out=tmp_path / "b.zip", threshold=0.5)
    assert verify(tmp_path / "b.zip").exact
    manifest = Bundle.open(tmp_path / "b.zip").manifest
    assert (manifest.input.dtype, manifest.decision.threshold) == ("float32", 0.5)
    assert report.variant == "float32"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--target", "rp"], "did you mean 'rpi'"),
        (["--target", "coral", "--variant", "float32"], "edgerec quantize {run}"),
        (["--variant", "int8-qta"], "did you mean 'int8-qat'"),
        (["--target", "mine.toml"], "target file mine.toml does not exist"),
    ],
)
def test_export_refuses_unknown_or_unsuitable_choices(run, tmp_path, invoke, arguments, expected):
    message = error_line(invoke("export", run.path, *arguments, "--out", tmp_path / "b"))
    assert expected.format(run=run.path) in message
    assert not (tmp_path / "b").exists()


def test_existing_files_are_not_overwritten(run, bundle, tmp_path, invoke):
    assert "already exists" in error_line(invoke("export", run.path, "--target", "rpi", "--out", bundle))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "manifest.json").write_text('{"name": "my web app"}')
    (tmp_path / "thesis.zip").write_bytes(b"mine")
    for name in ("web", "thesis.zip"):
        with pytest.raises(OutputExistsError, match="--overwrite does not replace it"):
            export_bundle(run, "rpi", out=tmp_path / name, overwrite=True)
    (tmp_path / "empty").mkdir()
    first = export_bundle(run, "rpi", out=tmp_path / "empty")
    (tmp_path / "empty" / "labels.txt").unlink()  # a damaged bundle may be overwritten
    assert export_bundle(run, "rpi", out=tmp_path / "empty", overwrite=True) == first


def test_export_works_in_the_folder_of_the_run(run, monkeypatch, tmp_path, edgerec):
    result = edgerec("export", ".", "--target", "desktop", cwd=run.path)
    assert result.returncode == 0, result.stderr
    assert verify(run.path.with_name(f"{run.path.name}-desktop")).exact


def test_compiled_bundle_needs_its_delegate(run, tmp_path, monkeypatch, edgerec, golden_images):
    """The export verifies on the CPU. The camera uses the Edge TPU, or fails with the reason."""
    monkeypatch.setenv("PATH", script(tmp_path, 'cp "$4" "$3/model_edgetpu.tflite"')["PATH"])
    bundle = export_bundle(run, "coral", out=tmp_path / "b").bundle
    message = error_line(edgerec("camera", bundle, "--source", golden_images[0].parent, "--headless"))
    assert "libedgetpu.so.1 does not load" in message
    assert "--delegate none" in message
    result = edgerec("camera", bundle, "--source", golden_images[0].parent, "--headless", "--delegate", "none")
    assert result.returncode == 0


def test_export_prints_json(run, tmp_path, invoke):
    result = invoke("export", run.path, "--target", "coral", "--out", tmp_path / "b", "--json")
    value = json.loads(result.stdout)
    assert value["bundle"] == str(tmp_path / "b")
    assert value["edgetpu"]["compiled"] is False
    assert "manifest.json" not in value["files"]
    assert "golden/golden.json" in value["files"]


@pytest.mark.slow
def test_killed_export_leaves_nothing_half_written(run, tmp_path):
    """The export is killed at six different times. The bundle is then either complete or missing."""
    complete = 0
    for number in range(6):
        out = tmp_path / f"bundle{number}"
        process = subprocess.Popen(
            [sys.executable, "-m", "edgerec", "export", str(run.path), "--target", "rpi", "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if number < 2:
            time.sleep(0.5 * (number + 1))
        else:  # while the bundle is written
            deadline = time.monotonic() + 60
            while not list(tmp_path.glob(f".bundle{number}.*")) and not out.exists():
                assert time.monotonic() < deadline
                time.sleep(0.0005)
            time.sleep(0.002 * (number - 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():
            complete += verify(out).exact
            continue
    assert complete == sum((tmp_path / f"bundle{n}").exists() for n in range(6))


def script(folder, text):
    """Create a stand-in for Google's Edge TPU compiler, and return a PATH that contains it."""
    path = folder / "edgetpu_compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_compiler_on_the_path_is_run(run, tmp_path, edgerec):
    # edgerec calls the compiler with the arguments "-s -o FOLDER MODEL".
    environment = script(tmp_path, 'echo "Model compiled successfully"; cp "$4" "$3/model_edgetpu.tflite"')
    result = edgerec("export", run.path, "--target", "coral", "--out", tmp_path / "b", env=os.environ | environment)
    assert result.returncode == 0, result.stderr
    assert "compiled" in result.stdout
    manifest = Bundle.open(tmp_path / "b").manifest
    assert (manifest.delegate_model, manifest.delegate) == ("model_edgetpu.tflite", "libedgetpu.so.1")


def test_compiler_that_fails_is_an_error(run, tmp_path, edgerec):
    environment = script(tmp_path, 'echo "Internal compiler error. Aborting!"; exit 1')
    result = edgerec("export", run.path, "--target", "coral", "--out", tmp_path / "b", env=os.environ | environment)
    message = error_line(result)
    assert "exit code 1: Internal compiler error" in message
    assert not (tmp_path / "b").exists()


def test_compiler_that_hangs_is_stopped(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", script(tmp_path, "exec sleep 30")["PATH"])
    monkeypatch.setattr(compiler, "COMPILE_TIMEOUT_S", 0.2)
    with pytest.raises(TargetError, match="timed out"):
        export_bundle(run, "coral", out=tmp_path / "b")


def test_edge_tpu_check_of_a_float_model_suggests_quantize(run):
    graph = read_graph((run.variant("float32") / "model.tflite").read_bytes())
    findings = edgetpu.diagnose(graph).findings
    assert {finding.op for finding in findings} >= {"input", "output", "CONV_2D"}
    assert all("edgerec quantize" in finding.way_out for finding in findings if finding.index >= 0)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("mobilenet_v1_0.25_128_quant", False),
        ("mobilenet_v1_0.5_160_quant", False),
        ("keras_lstm_mnist_ptq", False),
        ("deeplabv3_mnv2_dm05_pascal_quant", True),
    ],
)
def test_edge_tpu_rules_agree_with_the_compiler(real_data, name, refused):
    """Google's compiler mapped three of these models completely, and one of them partially."""
    findings = edgetpu.diagnose(read_graph((real_data / "edgetpu" / f"{name}.tflite").read_bytes())).findings
    assert bool(findings) == refused
