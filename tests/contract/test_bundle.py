"""Bundles are refused if a file or a value in the manifest is missing, damaged or inconsistent."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from contextlib import suppress

import numpy as np
import pytest

from edgerec import Bundle, Classifier, verify
from edgerec.contract.manifest import SCHEMA_VERSION, Manifest
from edgerec.errors import BundleError, DelegateError, ModelError, OutputExistsError
from edgerec.runtime.interpreter import find_runtime
from tests.conftest import error_line


@pytest.fixture
def copy(bundle, tmp_path):
    """Return the path of a copy of the bundle, which a test can damage."""
    path = tmp_path / "copy"
    shutil.copytree(bundle, path)
    return path


def change(path, **values):
    manifest = json.loads((path / "manifest.json").read_text()) | values
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_bundle_contains_the_documented_files(bundle):
    names = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert {"manifest.json", "model.tflite", "labels.txt", "README.md", "requirements.txt"} <= names
    assert "golden/golden.json" in names
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["schema"] == SCHEMA_VERSION
    assert set(manifest["files"]) == names - {"manifest.json"}


def test_manifest_is_unchanged_after_writing_and_reading_json(bundle):
    manifest = Bundle.open(bundle).manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_verify_finds_equal_scores_on_the_exporting_machine(bundle):
    report = verify(bundle)
    assert report.exact
    assert report.tolerance == 0
    assert len(report.golden) == 10


def test_verify_tolerates_small_differences_from_another_machine(copy):
    golden = json.loads((copy / "golden/golden.json").read_text())
    golden["made_on"]["machine"] = "aarch64"
    golden["vectors"][0]["scores"][0][0] += 2
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    report = verify(copy)
    assert (report.tolerance, report.max_difference, report.exact) == (16, 2, False)
    golden["vectors"][0]["scores"][0][0] += 15
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match=r"differ by 17 .* at most 16 is allowed"):
        verify(copy)


def test_verify_refuses_another_label_even_within_the_tolerance(copy, monkeypatch):
    """On another machine, scores may differ a little, but a clear prediction must stay the same."""
    golden = json.loads((copy / "golden/golden.json").read_text())
    golden["made_on"]["machine"] = "aarch64"
    for vector in golden["vectors"]:
        vector["scores"][0] = [120, 100, *[0] * 8]
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())

    def predict(*scores: int) -> None:
        values = (np.array([*scores, *[0] * 8], np.uint8),)
        monkeypatch.setattr(Classifier, "stored_scores", lambda *_: values)

    predict(112, 108)
    assert verify(copy).max_difference == 8
    predict(106, 114)
    with pytest.raises(BundleError, match=r"model\.tflite predicts '1' on this machine, but predicted '0'"):
        verify(copy)


def test_verify_refuses_other_scores_on_the_same_machine(copy):
    golden = json.loads((copy / "golden/golden.json").read_text())
    golden["vectors"][3]["scores"][0][0] += 1
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match=r"003\.png: scores of model\.tflite differ by 1 .* at most 0 is allowed"):
        verify(copy)


def test_verify_refuses_nan_scores(bundle, monkeypatch):
    """NaN is never equal to a golden score."""
    real = Classifier.stored_scores
    monkeypatch.setattr(Classifier, "stored_scores", lambda *a: tuple(scores * np.nan for scores in real(*a)))
    with pytest.raises(BundleError, match="differ by nan"):
        verify(bundle)


def test_verify_refuses_other_preprocessing(copy):
    spec = json.loads((copy / "manifest.json").read_text())["preprocess"]
    change(copy, preprocess=spec | {"interpolation": "nearest"})
    with pytest.raises(BundleError, match="different pixels"):
        verify(copy)


def rewrite(path, name, content):
    """Replace the content of a file in the bundle, and its digest in the manifest."""
    from edgerec.utils.atomic import sha256

    (path / name).write_bytes(content)
    files = json.loads((path / "manifest.json").read_text())["files"]
    change(path, files=files | {name: sha256(content)})


def test_verify_refuses_a_changed_byte(copy, edgerec):
    content = bytearray((copy / "model.tflite").read_bytes())
    content[1000] ^= 1
    (copy / "model.tflite").write_bytes(content)
    assert "model.tflite was changed or damaged" in error_line(edgerec("verify", copy))


def test_verify_refuses_a_missing_file(copy, edgerec):
    (copy / "labels.txt").unlink()
    assert "labels.txt is missing" in error_line(edgerec("verify", copy))


def test_newer_schema_suggests_to_upgrade_edgerec(copy, edgerec):
    change(copy, schema=SCHEMA_VERSION + 1)
    assert "upgrade with pip install -U edgerec" in error_line(edgerec("verify", copy))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "golden/../../secret", "C:\\x", "", "a\ud800"])
def test_file_name_outside_of_the_bundle_is_refused(copy, name):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    change(copy, files=files | {name: "0" * 64})
    with pytest.raises(BundleError, match="points outside the bundle"):
        Bundle.open(copy)


def test_link_out_of_the_bundle_is_refused(copy, tmp_path):
    (tmp_path / "secret").write_bytes((copy / "labels.txt").read_bytes())
    (copy / "labels.txt").unlink()
    os.symlink(tmp_path / "secret", copy / "labels.txt")
    with pytest.raises(BundleError, match="link to a file outside the bundle"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": ["one"]}, "has 1 labels, but the model's output"),
        ({"labels": []}, "labels"),
        ({"labels": ["one"] * 10}, "duplicate labels"),
        ({"labels": [1, 2]}, "labels"),
        ({"input": {"dtype": "float64", "shape": [1]}}, "float64"),
        ({"input": 3}, "input"),
        ({"preprocess": {"height": 5, "width": 5}}, "but preprocessing produces"),
        ({"preprocess": {"hight": 5}}, "hight"),
        ({"normalize": {"mean": 0}}, "std"),
        ({"normalize": {"mean": 0, "std": 0}}, "positive std"),
        ({"normalize": {"mean": float("nan"), "std": 1}}, "finite mean"),
        ({"threads": 10**400}, "threads"),
        ({"threads": "4"}, "threads"),
        ({"delegate": "a\0b"}, "is not loaded"),
        ({"decision": {"threshold": 2}}, "threshold"),
        ({"model": "other.tflite"}, "has no digest for it"),
        ({"model": ""}, "has no digest for it"),
        ({"model": 5}, "expected a string"),
        ({"files": {"model.tflite": "short"}}, "expected a SHA-256"),
        ({"colour": "blue"}, "unknown key 'colour'"),
        ({"schema": "one"}, "schema is 'one'"),
    ],
)
def test_invalid_manifest_is_refused(copy, values, message):
    change(copy, **values)
    with pytest.raises((BundleError, DelegateError), match=message):
        Classifier.open(copy)


def test_file_name_that_is_too_long_is_refused(copy):
    files = json.loads((copy / "manifest.json").read_text())["files"]
    change(copy, files=files | {"golden/" + "a" * 5000: "0" * 64})
    with pytest.raises(BundleError, match="cannot be read") as excinfo:
        Bundle.open(copy)
    assert len(str(excinfo.value)) <= 1010


@pytest.mark.parametrize("text", ["a\nb", "a\r\x1b[2Jb", "\ud800"])
def test_error_with_control_characters_is_one_printable_line(copy, text, edgerec):
    change(copy, **{text: 1})
    message = error_line(edgerec("verify", copy))
    assert "unknown key" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda golden: golden["vectors"][0].pop("pixels_sha256"), "has no digest"),
        (lambda golden: golden["vectors"][0].update(scores=[10**400] * 10), "too large"),
        (lambda golden: golden["vectors"].append("text"), "damaged"),
    ],
)
def test_damaged_golden_vectors_are_refused(copy, damage, message):
    golden = json.loads((copy / "golden/golden.json").read_text())
    damage(golden)
    rewrite(copy, "golden/golden.json", json.dumps(golden).encode())
    with pytest.raises(BundleError, match=message):
        verify(copy)


def test_deeply_nested_golden_vectors_are_refused(copy):
    rewrite(copy, "golden/golden.json", b"[" * 100_000)
    with pytest.raises(BundleError, match="damaged"):
        verify(copy)


def test_tensor_name_that_is_not_utf8_is_refused(copy):
    model = (copy / "model.tflite").read_bytes()
    name = find_runtime()[1].Interpreter(model_content=model).get_output_details()[0]["name"].encode()
    rewrite(copy, "model.tflite", model.replace(name, b"\xff" * len(name)))
    with pytest.raises(ModelError, match="is not valid UTF-8"):
        Classifier.open(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000])
def test_invalid_json_is_refused_as_manifest(copy, content):
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(copy)


def test_manifest_that_contradicts_the_model_is_refused(copy):
    spec = json.loads((copy / "manifest.json").read_text())["output"]
    change(copy, output=spec | {"scale": 0.5})
    with pytest.raises(BundleError, match="the manifest says"):
        Classifier.open(copy)


def test_zip_of_a_bundle_can_be_verified(bundle, tmp_path):
    for name, prefix in (("flat.zip", ""), ("folder.zip", "signs/")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in bundle.rglob("*"):
                if file.is_file():
                    archive.write(file, prefix + file.relative_to(bundle).as_posix())
        assert verify(tmp_path / name).exact


def test_damaged_zip_is_refused(bundle, tmp_path):
    opened = Bundle.open(bundle)
    Bundle.write(tmp_path / "b.zip", opened.manifest, opened.files)
    content = bytearray((tmp_path / "b.zip").read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = content.copy()
        for position in rng.integers(0, len(content), 3):
            damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with suppress(BundleError):
            files = Bundle.open(tmp_path / "damaged.zip").files
            assert all(files[name] == opened.files[name] for name in opened.manifest.runtime_files)
    for position in range(content.index(b"PK\x01\x02"), len(content)):  # each byte of the central directory
        damaged = content.copy()
        damaged[position] ^= 0xFF
        (tmp_path / "damaged.zip").write_bytes(damaged)
        with suppress(BundleError):
            files = Bundle.open(tmp_path / "damaged.zip").files
            assert all(files[name] == opened.files[name] for name in opened.manifest.runtime_files)
    (tmp_path / "damaged.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match="not a bundle"):
        Bundle.open(tmp_path / "damaged.zip")


def test_equal_bundles_have_equal_zip_bytes(bundle, tmp_path):
    opened = Bundle.open(bundle)
    for name in ("a.zip", "b.zip"):
        Bundle.write(tmp_path / name, opened.manifest, opened.files)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_existing_bundle_is_replaced_only_with_overwrite(bundle, tmp_path):
    opened = Bundle.open(bundle)
    for path in (tmp_path / "b", tmp_path / "b.zip"):
        Bundle.write(path, opened.manifest, opened.files)
        with pytest.raises(OutputExistsError, match="--overwrite"):
            Bundle.write(path, opened.manifest, opened.files)
        Bundle.write(path, opened.manifest, opened.files, overwrite=True)
        assert verify(path).exact
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "b.zip"]


def test_error_for_paths_that_are_not_bundles_is_one_line(tmp_path, edgerec):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").mkdir()
    assert "does not exist" in error_line(edgerec("verify", tmp_path / "nothing"))
    assert "not a bundle" in error_line(edgerec("verify", tmp_path / "text"))
    assert "no manifest.json" in error_line(edgerec("verify", tmp_path / "empty"))


def test_verify_prints_json(copy, edgerec):
    result = edgerec("verify", copy, "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 0
    assert report["ok"] is True
    assert report["exact"] is True
    (copy / "labels.txt").unlink()
    result = edgerec("verify", copy, "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["ok"] is False
    assert "labels.txt" in json.loads(result.stdout)["reason"]
