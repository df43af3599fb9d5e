"""LiteRT's GPU accelerator with SwiftShader, a Vulkan driver that runs on the CPU and is installed with Chromium."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from edgerec import Classifier, read_image
from edgerec.errors import DelegateError
from edgerec.runtime import gpu_interpreter
from tests.conftest import error_line

DRIVERS = [Path("/usr/lib/chromium/vk_swiftshader_icd.json"), Path("/usr/lib/chromium-browser/vk_swiftshader_icd.json")]
DRIVER = next((path for path in DRIVERS if path.is_file()), None)

pytestmark = pytest.mark.skipif(not find_spec("ai_edge_litert.gpu_options"), reason="LiteRT without a GPU accelerator")
needs_driver = pytest.mark.skipif(DRIVER is None, reason="no SwiftShader: apt install chromium libvulkan1")


def environment(driver) -> dict[str, str]:
    """Return an environment in which Vulkan finds only this driver."""
    return os.environ | {"VK_ICD_FILENAMES": str(driver), "VK_DRIVER_FILES": str(driver)}


@needs_driver
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gpu_scores_are_close_to_cpu_scores(bundle, golden_images, edgerec, precision):
    result = edgerec(
        *("camera", bundle, "--source", bundle / "golden", "--headless", "--json"),
        *("--delegate", "gpu", "--delegate-option", f"precision={precision}"),
        env=environment(DRIVER),
    )
    assert result.returncode == 0, result.stderr
    scores_by_file = {}
    for line in map(json.loads, result.stdout.splitlines()):
        if line["event"] == "result":
            scores_by_file[Path(line["source"]).name] = {entry["index"]: entry["score"] for entry in line["categories"]}
    assert len(scores_by_file) == len(golden_images)
    classifier = Classifier.open(bundle)
    for image in golden_images:
        scores = classifier.classify(read_image(image)).scores
        for index, score in scores_by_file[image.name].items():
            assert score == pytest.approx(scores[index], abs=3 / 256)  # three quantization steps of the int8 output


def test_delegate_gpu_without_a_gpu_is_an_error(bundle, edgerec, tmp_path):
    arguments = ("benchmark", bundle, "--delegate", "gpu", "--seconds", "0.1", "--no-operators")
    message = error_line(edgerec(*arguments, env=environment(tmp_path / "none.json")))
    assert "the GPU cannot run" in message
    assert "--delegate none" in message


def test_unknown_gpu_option_is_refused(bundle):
    for options in ({"precision": "fp8"}, {"device": "0"}):
        with pytest.raises(DelegateError, match="expected precision=fp32 or precision=fp16"):
            Classifier.open(bundle, delegate="gpu", delegate_options=options)


def test_warning_if_the_gpu_does_not_support_all_operators(bundle, monkeypatch, caplog):
    class Partial:
        fully_accelerated = False

        def __init__(self, interpreter, *_):
            self.__dict__.update({name: getattr(interpreter, name) for name in METHODS})

    METHODS = ("get_input_details", "get_output_details", "set_tensor", "invoke", "get_tensor")
    monkeypatch.setattr(gpu_interpreter, "GpuInterpreter", Partial)
    monkeypatch.setattr(gpu_interpreter, "probe", lambda *_, **__: "")
    result = Classifier.open(bundle, delegate="gpu").classify(np.zeros((28, 28, 3), np.uint8))
    assert result.scores.shape == (10,)
    assert "the GPU supports only some of the operators" in caplog.text
