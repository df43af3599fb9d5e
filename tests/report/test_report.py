"""``edgerec report``: content and safety of the HTML page of a run."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("jinja2", reason='no Jinja2 (pip install "edgerec[train]")')

from typer.testing import CliRunner

from edgerec import Run, write_report
from edgerec.cli.app import app
from edgerec.data import load
from edgerec.errors import DataError, EdgerecError, OutputExistsError, RunError
from edgerec.report import images, scoring
from edgerec.report.content import ClassMetrics
from edgerec.report.html import render
from edgerec.train.confidence_calibration import reliability

HOSTILE_MARKUP = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}",
    "$\\frac{$",
    "&lt;b&gt;",
    "<!--",
    "</style>",
    "</title>",
    "]]>",
)
VOID_ELEMENTS = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, and its visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw, self.elements, self.open, self.texts = path.read_text(encoding="utf-8"), [], [], []
        self.feed(self.raw)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def sections(self):
        return [attributes["id"] for attributes in self.of("section")]

    def check(self):
        """Check that the page is well-formed, and has no external references and no other script than its own."""
        assert self.open == []
        assert len(self.of("script")) == 1
        assert not {"link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in self.elements}
        for tag, attributes in self.elements:
            assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
            for name in ("src", "href", "xlink:href", "srcset", "action"):
                value = attributes.get(name, "#")
                assert value.startswith(("#", "data:image/png;base64,", "data:image/jpeg;base64,")), (tag, value[:80])
        assert set(re.findall(r"url\((.)", self.raw)) <= {"#"}
        assert "@import" not in self.raw
        assert not re.findall(r"https?:", self.raw)
        policy = next(
            element["content"]
            for element in self.of("meta")
            if "content" in element and "default-src" in element["content"]
        )
        assert policy.startswith("default-src 'none'; img-src data:;")
        ids = [attributes["id"] for tag, attributes in self.elements if "id" in attributes and tag == "section"]
        assert len(ids) == len(set(ids))
        return self


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    """The report of a complete run."""
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(report):
    return Page(Path(report.page)).check()


@pytest.fixture
def run_copy(run, tmp_path):
    """A copy of the run that a test may change."""
    shutil.copytree(run.path, tmp_path / "digits")
    return Run.at(tmp_path / "digits")


def move_images(run: Run, source: str) -> Run:
    """Change the source of the images in the recipe of the run."""
    recipe = run.recipe
    (run.path / "recipe.toml").write_text(replace(recipe, data=replace(recipe.data, source=source)).to_toml())
    return run


def renamed_images(run: Run, names: list[str]) -> None:
    """Replace the old ``names`` of the images in the split by their new names."""
    dataset, record = load(run.recipe.data)[0], run.split_record
    new = dict(zip(names, dataset.names, strict=True))
    edit_json(
        run,
        "split.json",
        digest=dataset.digest,
        **{part: [new[name] for name in record[part]] for part in ("val", "test")},
    )


def edit_json(run: Run, name: str, **changes) -> None:
    path = run.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- Calibration ----------------------------------------------------------------------------------------------------


def two_class_scores(scores):
    """Return the scores of two classes, given the scores of the first class."""
    first = np.array(scores, np.float64)
    return np.stack([first, 1 - first], axis=1)


def test_ece_matches_a_manual_calculation():
    # With five bins, (0.4, 0.6] contains one wrong and one correct prediction with a score of 0.5625, (0.6, 0.8] a
    # correct one with 0.75, and (0.8, 1] a wrong one with 0.875 and a correct one with 1.0.
    result = reliability(two_class_scores([0.5625, 0.5625, 0.75, 0.875, 1.0]), np.array([1, 0, 0, 1, 0]), bins=5)
    assert [score_bin.images for score_bin in result.bins] == [0, 0, 2, 1, 2]
    assert [score_bin.accuracy for score_bin in result.bins] == [None, None, 0.5, 1.0, 0.5]
    assert [score_bin.score for score_bin in result.bins] == [None, None, 0.5625, 0.75, 0.9375]
    assert result.ece == pytest.approx((2 * 0.0625 + 1 * 0.25 + 2 * 0.4375) / 5)
    assert (result.accuracy, result.score, result.images) == (0.6, pytest.approx(0.75), 5)


def test_score_on_a_bin_edge_belongs_to_the_lower_bin():
    result = reliability(two_class_scores([0.5, 0.75, 1.0]), np.zeros(3, int), bins=4)
    assert [score_bin.images for score_bin in result.bins] == [0, 1, 1, 1]


def test_perfect_calibration_has_no_error():
    scores = two_class_scores(np.repeat([0.625, 0.75, 0.875], 8))
    classes = np.array([0] * 5 + [1] * 3 + [0] * 6 + [1] * 2 + [0] * 7 + [1])
    assert reliability(scores, classes).ece == 0
    assert reliability(two_class_scores([1.0, 1.0]), np.zeros(2, int)).ece == 0


def test_reliability_has_fifteen_bins_by_default():
    result = reliability(two_class_scores([0.5]), np.zeros(1, int))
    assert len(result.bins) == 15
    assert (result.bins[0].low, result.bins[-1].high) == (0, 1)


# --- The page of a complete run -------------------------------------------------------------------------------------


def test_page_contains_the_metrics_of_the_run(run, report, page):
    assert page.sections == ["data", "training", "classes", "mistakes", "calibration", "variants", "next", "made"]
    metrics, variant = run.metrics, run.variants()["int8-qat"]
    for text in (
        f"{metrics['accuracy']:.2%}",
        f"{metrics['parameters']:,}",
        run.split_record["digest"],
        f"{variant['forms'][-1]['size_bytes']:,}",
        f"{variant['forms'][-1]['gzip_bytes']:,}",
        f"tensorflow {metrics['versions']['tensorflow']}",
        'source = "digits"',
        f"{report.calibration[0].after.ece:.2%}",
        f"edgerec export {run.path} --target rpi",
    ):
        assert text in page.text, text
    assert len(page.raw) < 1_000_000
    assert report.page_bytes == Path(report.page).stat().st_size
    assert report.missing == ()


def test_report_values_equal_the_metrics_of_the_run(run, report):
    metrics = run.metrics
    assert report.top1.value == metrics["accuracy"] == pytest.approx(report.calibration[0].before.accuracy)
    assert report.top1.low < report.top1.value < report.top1.high
    assert [list(row) for row in report.confusion] == metrics["confusion"]
    assert [row.label for row in report.classes] == list(run.labels)
    assert sum(row.train for row in report.classes) == report.splits["train"] == metrics["train_images"]
    assert [row.test for row in report.classes] == [row["support"] for row in metrics["per_class"].values()]
    assert report.mistakes_total == sum(map(sum, metrics["confusion"])) - int(np.trace(metrics["confusion"]))
    scores = [mistake.score for mistake in report.mistakes]
    assert scores == sorted(scores, reverse=True)
    assert all(mistake.truth != mistake.prediction for mistake in report.mistakes)
    assert [row.model for row in report.calibration] == ["float Keras", "int8-qat"]
    assert [(row.variant, row.chosen) for row in report.variants] == [("float32", False), ("int8-qat", True)]
    assert report.calibration[1].before.accuracy == run.variants()["int8-qat"]["forms"][-1]["top1"]
    json.dumps(report.to_dict(), allow_nan=False)


def test_temperature_equals_the_temperature_in_the_bundle(report, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert report.calibration[1].temperature == manifest["decision"]["temperature"]


def test_embedded_images_are_the_preprocessed_images(report, page, run):
    elements = page.of("img")
    assert len(elements) == 10 * 8 + len(report.mistakes)
    assert all(element["alt"] and element["width"] == element["height"] == "28" for element in elements)
    dataset, _ = run.data()
    content = base64.b64decode(elements[80]["src"].partition(",")[2])
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(pixels, dataset.images[report.mistakes[0].position][:, :, 0])


def test_large_images_are_shrunk_and_keep_their_colors():
    image = np.zeros((200, 400, 3), np.uint8)
    image[:, :, 0] = 220
    embedded = images.embed(image)
    assert (embedded.width, embedded.height) == (images.MAX_SIDE_PX, images.MAX_SIDE_PX // 2)
    content = np.frombuffer(base64.b64decode(embedded.address.partition(",")[2]), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR)[30, 30].tolist() == pytest.approx([0, 0, 220], abs=6)


def test_page_is_reproducible(run, report, tmp_path):
    write_report(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == Path(report.page).read_bytes()


# --- Malicious and private data --------------------------------------------------------------------------------------


def test_markup_in_labels_and_names_is_escaped(run_copy, tmp_path):
    """Labels and the names of the data, the run and a variant contain HTML."""
    dataset, _ = run_copy.data()
    source = tmp_path / "\"><b onclick='x'>.npz"
    raw = np.stack([dataset.original(i) for i in range(len(dataset.names))])
    np.savez(source, x_train=raw, y_train=dataset.classes, labels=np.array(HOSTILE_MARKUP))
    marked_up = Run.at(run_copy.path.rename(tmp_path / "<i>run&amp;"))
    move_images(marked_up, str(source))
    (marked_up.path / "int8-qat").rename(marked_up.path / "<u>$x")
    edit_json(marked_up, "<u>$x/report.json", variant="<u>$x")
    (marked_up.path / "labels.txt").write_text("".join(f"{label}\n" for label in HOSTILE_MARKUP))
    per_class = dict(zip(HOSTILE_MARKUP, marked_up.metrics["per_class"].values(), strict=True))
    edit_json(marked_up, "metrics.json", per_class=per_class, labels=list(HOSTILE_MARKUP))
    renamed_images(marked_up, dataset.names)
    report = write_report(marked_up)
    page = Page(Path(report.page)).check()
    assert report.missing == ()
    for label in (*HOSTILE_MARKUP, "<i>run&amp;", "<u>$x"):
        assert " ".join(label.split()) in page.text, label
    assert not page.of("i") or all(set(element) <= {"style", "class"} for element in page.of("i"))
    assert not page.of("u")
    assert "49" not in {text.strip() for text in page.texts}
    assert any(source.name in mistake.name for mistake in report.mistakes)


def test_page_without_images_contains_no_private_paths(run_copy, tmp_path):
    dataset, _ = run_copy.data()
    home = tmp_path / "home-of-anna"
    home.mkdir()
    raw = np.stack([dataset.original(i) for i in range(len(dataset.names))])
    np.savez(home / "digits.npz", x_train=raw, y_train=dataset.classes, labels=np.array(dataset.labels))
    move_images(run_copy, str(home / "digits.npz"))
    distilled = run_copy.recipe.override({"distill.teachers": f"{home / 'large'},{home / 'larger'}"})
    (run_copy.path / "recipe.toml").write_text(distilled.to_toml())
    renamed_images(run_copy, dataset.names)
    report = write_report(run_copy, tmp_path / "page.html", images=False)
    page = Page(tmp_path / "page.html").check()
    assert page.of("img") == []
    assert "home-of-anna" not in page.raw
    assert "home-of-anna" not in json.dumps(report.to_dict())
    assert report.mistakes
    assert not any(mistake.name for mistake in report.mistakes)
    assert report.mistakes[0].prediction in page.text
    assert f"edgerec export {run_copy.path.name} --target rpi" in page.text
    (home / "digits.npz").unlink()
    write_report(run_copy, tmp_path / "page.html", images=False, overwrite=True)
    page = Page(tmp_path / "page.html").check()
    assert "digits.npz does not exist" in page.text
    assert "home-of-anna" not in page.raw
    assert str(run_copy.path) not in page.raw


# --- Incomplete runs -------------------------------------------------------------------------------------------------


def test_report_of_moved_images_leaves_out_images_and_counts(run_copy, tmp_path):
    metrics = run_copy.metrics
    move_images(run_copy, str(tmp_path / "gone"))
    report = write_report(run_copy)
    page = Page(run_copy.path / "report.html").check()
    assert "gone does not exist. If the images were moved, add --data" in page.text
    assert page.sections == ["data", "training", "classes", "mistakes", "variants", "next", "made"]
    assert f"{metrics['accuracy']:.2%}" in page.text
    assert len(page.of("img")) == 1  # the plot of the mistakes from the training
    assert (report.calibration, report.mistakes, report.splits["train"]) == ((), (), metrics["train_images"])
    complete = write_report(run_copy, data="digits", overwrite=True)
    assert (complete.missing, len(complete.calibration)) == ((), 2)
    changed_data = tmp_path / "other.npz"
    np.savez(changed_data, x_train=np.zeros((30, 8, 8), np.uint8), y_train=np.arange(30) % 10)
    with pytest.raises(DataError, match="its digest differs"):
        write_report(run_copy, data=str(changed_data), overwrite=True)


def test_report_of_changed_images_says_that_the_digest_differs(run_copy, tmp_path):
    np.savez(tmp_path / "other.npz", x_train=np.zeros((30, 8, 8), np.uint8), y_train=np.arange(30) % 10)
    report = write_report(move_images(run_copy, str(tmp_path / "other.npz")))
    assert "its digest differs" in report.missing[0]
    assert report.top1 is not None


def test_report_of_an_unfinished_run_suggests_to_resume_it(run_copy):
    for name in ("metrics.json", "model.keras"):
        (run_copy.path / name).unlink()
    report = write_report(run_copy)
    page = Page(run_copy.path / "report.html").check()
    assert page.sections == ["data", "training", "next", "made"]
    assert "is not finished: 4 epochs have been completed" in page.text
    assert [step.command for step in report.next] == [f"edgerec train --resume --out {run_copy.path}"]
    assert (report.finished, report.top1, len(report.history)) == (False, None, 4)
    (run_copy.path / "history.csv").unlink()
    write_report(run_copy, overwrite=True)
    assert Page(run_copy.path / "report.html").check().sections == ["data", "next", "made"]


def test_confusion_matrix_is_shown_without_a_top1_accuracy(report, tmp_path):
    (tmp_path / "page.html").write_text(render(replace(report, top1=None), images.PageImages()), encoding="utf-8")
    page = Page(tmp_path / "page.html").check()
    assert f"on {report.top1.images} test images" in page.text
    assert "classes" in page.sections


def test_report_of_a_run_without_variants_suggests_quantize(run_copy):
    shutil.rmtree(run_copy.path / "int8-qat")
    shutil.rmtree(run_copy.path / "float32")
    report = write_report(run_copy)
    assert Page(run_copy.path / "report.html").check().sections[4:] == ["calibration", "next", "made"]
    assert report.next[-1].command == f"edgerec quantize {run_copy.path}"
    assert report.chosen is None


def test_report_of_damaged_models_states_what_is_missing(run_copy):
    (run_copy.path / "model.keras").write_bytes(b"no model")
    with (run_copy.path / "int8-qat" / "model.tflite").open("ab") as file:
        file.write(b"another")
    report = write_report(run_copy)
    assert "calibration and misclassified images of the float model are missing" in report.missing[0]
    assert "was modified after its accuracy was measured" in report.missing[1]
    assert report.top1 is not None
    assert Page(run_copy.path / "report.html").check().sections == [
        "data",
        "training",
        "classes",
        "variants",
        "next",
        "made",
    ]


def test_report_of_an_adopted_model_shows_agreement_instead_of_accuracy(run_copy):
    """The predictions of the adopted model serve as labels, so there is no calibration."""
    dataset, _ = run_copy.data()
    true_labels = {name: dataset.labels[index] for name, index in zip(dataset.names, dataset.classes, strict=True)}
    run_copy.write_json("pseudo_labels.json", true_labels)
    adopted = {"file": "theirs.keras", "sha256": "0" * 64, "truth": "predictions", "normalize": "unit"}
    edit_json(run_copy, "metrics.json", adopted=adopted, epochs=0, best_epoch=0, seconds=0.0)
    run_copy.write_history([])
    report = write_report(run_copy)
    page = Page(run_copy.path / "report.html").check()
    assert page.sections == ["data", "classes", "mistakes", "variants", "next", "made"]
    assert "trained with another tool and adopted" in page.text
    assert "the metrics show agreement instead of accuracy" in page.text
    assert (report.mistakes_of, report.metrics_of, report.calibration) == ("int8-qat", "int8-qat", ())
    assert "int8-qat disagrees with the adopted model" in page.text
    assert report.mistakes_total == round((1 - report.variants[1].top1) * report.top1.images)


def test_variants_are_skipped_after_the_time_budget(run_copy, monkeypatch):
    shutil.copytree(run_copy.path / "int8-qat", run_copy.path / "int8")
    edit_json(run_copy, "int8/report.json", variant="int8", val_top1=0.0)
    monkeypatch.setattr(scoring, "BUDGET_S", -1.0)
    report = write_report(run_copy)
    assert [row.model for row in report.calibration] == ["float Keras", "int8-qat"]
    assert report.missing == (
        "calibration of int8 is missing, because measuring the other variants took more than -1 s",
    )


def test_times_of_changed_variants_are_not_shown(run_copy):
    content = (run_copy.path / "int8-qat" / "model.tflite").read_bytes()
    form = run_copy.variants()["int8-qat"]["forms"][-1]
    row = {"size_bytes": form["size_bytes"], "gzip_bytes": form["gzip_bytes"], "median_ms": 0.25, "p95_ms": 0.5}
    rows = [row | {"variant": "int8-qat"}, row | {"variant": "float32"}]
    run_copy.write_json(
        "compare.json", {"rows": rows, "machine": "x86_64", "threads": 1, "notes": ["zeros <buy> nothing"]}
    )
    report = write_report(move_images(run_copy, "nowhere"))
    assert [(row.variant, row.median_ms) for row in report.variants] == [("float32", None), ("int8-qat", 0.25)]
    assert (report.timed_on, len(content)) == ("x86_64, 1 thread", form["size_bytes"])
    page = Page(run_copy.path / "report.html").check()
    assert "0.250 ms" in page.text
    assert "zeros <buy> nothing" in page.text


def test_large_confusion_matrix_is_an_image(run_copy):
    """A table would be too large for the page."""
    count = 120
    labels = [f"class {i}" for i in range(count)]
    metrics = run_copy.metrics
    per_class = {label: {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 25} for label in labels}
    edit_json(run_copy, "metrics.json", confusion=np.eye(count, dtype=int).tolist(), labels=labels, per_class=per_class)
    (run_copy.path / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    report = write_report(move_images(run_copy, "nowhere"))
    page = Page(run_copy.path / "report.html").check()
    assert len(report.classes) == count
    assert [element["width"] for element in page.of("img") if element["alt"] == "confusion matrix"] == [str(count)]
    assert "Most frequent misclassifications None." in page.text
    assert report.top1.value == metrics["accuracy"]


def test_advice_names_weak_classes_and_variants(report):
    from edgerec.report.advice import advice

    rows = [ClassMetrics(label, 300, 30, 40, 0.9, 0.9, 0.95) for label in "abcd"]
    rows += [ClassMetrics("rare", 40, 4, 6, 0.5, 0.5, 0.5)]
    history = ({"epoch": 4.0, "accuracy": 0.99, "val_accuracy": 0.9},)
    about = replace(report.training, best_epoch=4, epochs=4)
    steps = advice(replace(report, classes=tuple(rows), history=history, training=about, timed_on=""))
    text = "\n".join(f"{step.why} {step.command}" for step in steps)
    for part in (
        "F1 score of rare is well below",
        "rare has fewer than 20",
        "class_weights",
        "9.0 points",
        "--compare",
        "export",
    ):
        assert part in text
    steps = advice(replace(report, top1=replace(report.top1, value=0.15)))
    assert steps[0].why.startswith("the accuracy is hardly better than random guessing")
    variant = replace(report.variants[1], drop_points=4.0, max_drop=1.0)
    steps = advice(replace(report, variants=(report.variants[0], variant)))
    assert f"edgerec parity {report.run} --variant int8-qat" in [step.command for step in steps]


# --- Errors, and the command line ------------------------------------------------------------------------------------


def test_existing_page_is_not_overwritten(run_copy, tmp_path):
    move_images(run_copy, "nowhere")
    (run_copy.path / "report.html").write_text("mine")
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        write_report(run_copy)
    assert (run_copy.path / "report.html").read_text() == "mine"
    write_report(run_copy, overwrite=True)
    assert sorted(path.name for path in run_copy.path.glob(".*")) == []
    with pytest.raises(OutputExistsError, match="is a folder: choose a file name"):
        write_report(run_copy, tmp_path)
    with pytest.raises(EdgerecError, match="is not a run: create one with edgerec train DATA"):
        write_report(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("metrics.json", {"per_class": {"0": 3}}, "metrics.json is damaged"),
        ("metrics.json", {"accuracy": "high"}, "metrics.json is damaged"),
        ("metrics.json", {"confusion": [[1, 2], [3]]}, "metrics.json is damaged"),
        ("metrics.json", {"loss": []}, "metrics.json is damaged"),
        ("split.json", {"val": None}, "split.json is damaged"),
        ("int8-qat/report.json", {"forms": []}, r"report.json is damaged"),
        ("int8-qat/report.json", {"drop_points": "few"}, r"report.json is damaged"),
    ],
)
def test_error_names_the_damaged_file(run_copy, name, changes, reason):
    edit_json(run_copy, name, **changes)
    with pytest.raises(RunError, match=reason):
        write_report(move_images(run_copy, "nowhere"))
    assert not (run_copy.path / "report.html").exists()


def test_report_command_writes_the_page_and_prints_json(run_copy, report):
    move_images(run_copy, "nowhere")
    result = CliRunner().invoke(app, ["report", str(run_copy.path), "--json"])
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["page"] == str(run_copy.path / "report.html")
    assert shown["top1"]["value"] == report.top1.value
    assert shown["variants"][1]["chosen"] is True
    result = CliRunner().invoke(
        app, ["report", str(run_copy.path), "--out", str(run_copy.path / "b.html"), "--no-images"]
    )
    assert result.exit_code == 0, result.output
    assert f"report   {run_copy.path / 'b.html'}" in result.stdout
    assert "missing  images, image counts per class" in result.stdout
    result = CliRunner().invoke(app, ["report", str(run_copy.path)])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("error: ")


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_page_works_in_a_browser_with_and_without_scripts(report):
    """The page causes no requests and no errors, fits the window, sorts tables, and can be read without scripts."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright (pip install playwright)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium (apt install chromium)")
    address, arguments = Path(report.page).as_uri(), ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as playwright_api:
        browser = playwright_api.chromium.launch(executable_path=chromium, args=arguments)
        for width, scheme, script in ((1280, "light", True), (390, "dark", False)):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
            )
            events = []
            page.on("console", lambda message, events=events: events.append(message.text))
            page.on("pageerror", lambda error, events=events: events.append(str(error)))
            page.on("request", lambda request, events=events: events.append(request.url[:60]))
            page.goto(address)
            assert page.locator("h1").inner_text() == report.name
            assert [text for text in events if not text.startswith(("file:", "data:"))] == []
            last = page.locator("footer").bounding_box()
            assert last["x"] + last["width"] <= width
            if script:
                assert page.evaluate("document.documentElement.scrollWidth") == width
                loaded = "[...document.images].every((one) => one.complete && one.naturalWidth > 0)"
                assert page.evaluate(loaded)
                page.click("#classes table.sortable th >> text=F1 score >> nth=0")
                shown = page.locator("#classes table.sortable tbody tr td:nth-child(4)").all_inner_texts()
                assert [float(text) for text in shown] == sorted(float(text) for text in shown)
            page.close()
        browser.close()
