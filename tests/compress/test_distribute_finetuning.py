"""Fine-tuning on two devices gives the same result as on one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

from edgerec import Run, quantize
from edgerec.tflite.flatbuffer import read_graph
from tests.conftest import write_red_and_blue_images

PROGRAM = """
import json, logging, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
logging.basicConfig(level=logging.INFO)
from edgerec import Recipe, fit, quantize
run = fit(Recipe().override(json.loads(sys.argv[1])), sys.argv[2])
print(json.dumps({method: quantize(run, method).sparsity for method in ("qat", "prune")}))
"""


def output_scales(run, variant):
    """Return the scale of each operator's output, which follows from the calibrated ranges."""
    graph = read_graph((run.variant(variant) / "model.tflite").read_bytes())
    return [(op.name, float(tensor.scales[0])) for op in graph.operators for tensor in op.outputs if len(tensor.scales)]


@pytest.mark.nightly
def test_pruning_and_qat_on_two_devices_equal_one_device(tmp_path):
    settings = {
        "data.source": str(write_red_and_blue_images(tmp_path / "images")),
        "data.input_size": 28,
        "model.width": 0.25,
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.accumulate": 2,
        "train.class_weights": "balanced",
        "compress.epochs": 2,
        "compress.max_drop": 100.0,
        "compress.sparsity": 0.6,
        # This learning rate changes nothing, so both models have the same activations.
        "compress.learning_rate": 1e-8,
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(settings), str(tmp_path / "two")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stderr.count("training on 2 CPUs") == 3
    two = Run.open(tmp_path / "two")
    sparsity = json.loads(result.stdout.splitlines()[-1])
    assert sparsity["prune"] == pytest.approx(0.6, abs=0.03)
    assert sparsity["qat"] < 0.1
    one = Run.open(shutil.copytree(tmp_path / "two", tmp_path / "one"))
    quantize(one, "qat", overwrite=True)
    for first, second in zip(output_scales(two, "int8-qat"), output_scales(one, "int8-qat"), strict=True):
        assert first[0] == second[0]
        assert first[1] == pytest.approx(second[1], rel=0.02)


RESUMED = """
import json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from edgerec import Recipe, fit

recipe, out = Recipe().override(json.loads(sys.argv[1])), sys.argv[2]

def interrupt(number, model):
    if number == 1:
        raise InterruptedError

whole = fit(recipe, out + "/whole")
try:
    fit(recipe, out + "/parts", on_epoch=interrupt)
except InterruptedError:
    pass
parts = fit(recipe, out + "/parts", resume=True)
pairs = zip(whole.model().weights, parts.model().weights)
print(json.dumps({a.name: float(np.abs(a.numpy() - b.numpy()).max()) for a, b in pairs}))
"""


@pytest.mark.nightly
def test_resumed_training_on_two_devices_has_the_same_statistics(tmp_path):
    """Each device has its own batch normalization statistics, and a checkpoint has their mean."""
    settings = {
        "data.source": str(write_red_and_blue_images(tmp_path / "images")),
        "data.input_size": 28,
        "model.arch": "ds_cnn",
        "model.width": 0.25,
        "train.epochs": 2,
        "train.batch_size": 8,
    }
    command = [sys.executable, "-c", RESUMED, json.dumps(settings), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    differences = json.loads(result.stdout.splitlines()[-1])
    assert any("moving_mean" in name for name in differences)
    assert {name: value for name, value in differences.items() if value} == {}
