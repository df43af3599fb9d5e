"""Verification with the delegate that will run the bundle, and on machines whose arithmetic differs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace

import cv2
import numpy as np
import pytest

from edgerec import Bundle, export_bundle, import_tflite, verify
from edgerec.errors import BundleError
from edgerec.runtime.verification import GOLDEN, UNITS_OTHER_MACHINE, UNITS_OTHER_RUNTIME
from edgerec.tflite.flatbuffer import pack, parse
from tests import tflite_models
from tests.conftest import error_line

# A delegate of TensorFlow Lite that accepts no operator, so that the CPU runs all operators.
DELEGATE = """
#include <stdint.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
typedef struct Delegate {
  void* data;
  int (*prepare)(void*, struct Delegate*);
  void *copy_from, *copy_to, *release;
  int64_t flags;
  void* builder;
} Delegate;
static int prepare(void* context, Delegate* delegate) { %s return 0; }
void* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
  Delegate* delegate = calloc(1, sizeof(Delegate));
  delegate->prepare = prepare;
  return delegate;
}
void tflite_plugin_destroy_delegate(void* delegate) { free(delegate); }
"""


def library(folder, code: str = "") -> dict[str, str]:
    """Return an environment in which ``libedgetpu.so.1`` executes ``code`` when it gets a model."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    folder.mkdir()
    (folder / "delegate.c").write_text(DELEGATE % code)
    command = ["cc", "-shared", "-fPIC", "-o", folder / "libedgetpu.so.1", folder / "delegate.c"]
    subprocess.run(command, check=True, timeout=60)
    return os.environ | {"LD_LIBRARY_PATH": str(folder)}


def compiled_bundle(run, folder, monkeypatch, *, broken: bool = False):
    """Export a bundle whose compiled file is the model itself, or one with other weights."""
    compiler = folder / "edgetpu_compiler"
    other = folder / "other.tflite"
    content = (run.variant("int8-qat") / "model.tflite").read_bytes()
    if broken:
        model = parse(content)
        largest = max(model.buffers, key=lambda buffer: 0 if buffer.data is None else len(buffer.data))
        largest.data = np.asarray(largest.data)[::-1].copy()
        content = pack(model)
    other.write_bytes(content)
    compiler.write_text(f'#!/bin/sh\ncp {other} "$3/model_edgetpu.tflite"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return export_bundle(run, "coral-usb", out=folder / "b").bundle


def test_verify_runs_the_compiled_file_with_its_delegate(run, tmp_path, monkeypatch, edgerec):
    bundle, environment = compiled_bundle(run, tmp_path, monkeypatch), library(tmp_path / "library")
    result = edgerec("verify", bundle, "--json", env=environment)
    value = json.loads(result.stdout)
    assert (result.returncode, value["ok"], value["delegate"]) == (0, True, "libedgetpu.so.1")
    assert value["tolerance"] == UNITS_OTHER_RUNTIME
    assert "delegate libedgetpu.so.1" in edgerec("verify", bundle, env=environment).stdout


def test_verify_finds_that_the_compiled_file_is_another_model(run, tmp_path, monkeypatch, edgerec):
    bundle = compiled_bundle(run, tmp_path, monkeypatch, broken=True)
    environment = library(tmp_path / "library")
    assert "with libedgetpu.so.1" in error_line(edgerec("verify", bundle, env=environment))
    # Without the delegate, only model.tflite is verified on the CPU, and a warning says so.
    result = edgerec("verify", bundle, "--delegate", "none", env=environment)
    assert result.returncode == 0
    assert "model_edgetpu.tflite was not run" in result.stderr


def test_a_delegate_that_crashes_with_the_model_is_an_error(run, tmp_path, monkeypatch, edgerec):
    """Users report this for a libedgetpu that was built for another runtime: it can be loaded, but crashes later."""
    bundle = compiled_bundle(run, tmp_path, monkeypatch)
    camera = ["camera", bundle, "--source", "synthetic:64x48@0", "--headless", "--max-frames", 2]
    for name, code, reason in (("crash", "raise(SIGSEGV);", "SIGSEGV"), ("fail", "return 1;", "")):
        environment = library(tmp_path / name, code)
        for command in (["verify", bundle], camera):
            message = error_line(edgerec(*command, env=environment))
            assert "libedgetpu.so.1 does not load (" in message
            assert reason in message
        result = edgerec(*camera, "--fallback", env=environment)
        assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr


def test_verify_needs_the_delegate_that_the_service_needs(run, tmp_path, monkeypatch, edgerec):
    bundle = compiled_bundle(run, tmp_path, monkeypatch)
    for command in (["verify", bundle], ["camera", bundle, "--source", "synthetic:64x48", "--headless"]):
        assert "--delegate none" in error_line(edgerec(*command))
    assert "cannot be combined with --on" in edgerec("verify", bundle, "--on", "rpi", "--delegate", "none").stderr


def exported_by_other_runtime(bundle, folder, change, runtime="tflite-runtime"):
    """Copy a bundle as if another runtime had exported it, with golden scores changed by ``change(index, scores)``."""
    opened = Bundle.open(bundle)
    golden = json.loads(opened.files[GOLDEN])
    golden["made_on"]["runtime"] = runtime
    for index, vector in enumerate(golden["vectors"]):
        vector["scores"] = [change(index, np.array(scores)).tolist() for scores in vector["scores"]]
    files = {name: content for name, content in opened.files.items() if name != "manifest.json"}
    files[GOLDEN] = json.dumps(golden).encode()
    Bundle.write(folder, replace(opened.manifest, files={}), files)
    return folder


def test_labels_are_compared_on_another_runtime(bundle, tmp_path):
    def within_tolerance(index, scores):
        """Make the second label of the first image the best one, without a difference above the tolerance."""
        best, second = np.argsort(scores)[::-1][:2]
        if index == 0:
            scores[best], scores[second] = scores[best] - 45, scores[second] + 45
        return scores

    assert verify(exported_by_other_runtime(bundle, tmp_path / "close", within_tolerance)).same_labels == 10

    def swapped(index, scores):
        return scores[::-1]

    with pytest.raises(BundleError, match=r"scores of model\.tflite differ by"):
        verify(exported_by_other_runtime(bundle, tmp_path / "far", swapped))


@pytest.fixture
def flat_bundle(tmp_path):
    """A bundle of a model whose scores are all close to 1/3, so that no image is decisive."""
    (tmp_path / "model.tflite").write_bytes(tflite_models.softmax(scale=1e-6).to_bytes())
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    image_paths = []
    for channel in range(3):
        image = np.zeros((8, 8, 3), np.uint8)
        image[:, :, 2 - channel] = 200
        image_paths.append(tmp_path / f"{channel}.png")
        cv2.imwrite(str(image_paths[-1]), image)
    import_tflite(
        tmp_path / "model.tflite",
        tmp_path / "b",
        labels=tmp_path / "labels.txt",
        normalize="pixels",
        activation="none",
        images=image_paths,
    )
    return tmp_path / "b"


def test_flat_scores_do_not_hide_a_model_with_other_labels(flat_bundle, tmp_path):
    same = verify(exported_by_other_runtime(flat_bundle, tmp_path / "same", lambda index, scores: scores))
    assert same.same_labels == same.images == 3
    with pytest.raises(BundleError, match=r"only 0 of 3 golden images have the same predicted label"):
        verify(exported_by_other_runtime(flat_bundle, tmp_path / "other", lambda index, scores: np.roll(scores, 1)))


def test_the_number_of_decisive_images_is_reported(flat_bundle, bundle, tmp_path, edgerec):
    clear = exported_by_other_runtime(bundle, tmp_path / "clear", lambda index, scores: scores - (index == 0))
    indecisive = exported_by_other_runtime(
        flat_bundle, tmp_path / "indecisive", lambda index, scores: scores + 1e-4 * (index == 0)
    )
    for path, decisive, total in ((clear, 10, 10), (indecisive, 0, 3)):
        value = json.loads(edgerec("verify", path, "--json").stdout)
        counts = {"images": total, "same_labels": total, "decisive": decisive}
        assert counts.items() <= value.items()
        result = edgerec("verify", path)
        assert f"for {decisive} of {total} golden images the label must be the same" in result.stdout
        warning = f"the labels of only {decisive} of {total} golden images must be the same"
        assert (warning in result.stderr, warning in " ".join(value["warnings"])) == (decisive == 0, decisive == 0)


def test_a_label_far_below_the_best_golden_score_is_found(flat_bundle, tmp_path):
    """Two best golden scores that are close to each other do not excuse a third label."""

    def change(index, scores):
        return scores + np.array([-9e-4, 9e-4, 8.9e-4]) if index == 0 else scores

    with pytest.raises(BundleError, match=r"model\.tflite predicts 'red' on this machine, but predicted 'green'"):
        verify(exported_by_other_runtime(flat_bundle, tmp_path / "third", change))


@pytest.mark.parametrize(
    ("runtime", "tolerance"), [("tensorflow", UNITS_OTHER_MACHINE), ("tflite-runtime", UNITS_OTHER_RUNTIME)]
)
def test_runtimes_with_the_same_kernels_have_a_smaller_tolerance(bundle, tmp_path, runtime, tolerance):
    copy = exported_by_other_runtime(bundle, tmp_path / "copy", lambda index, scores: scores, runtime)
    assert verify(copy).tolerance == tolerance
