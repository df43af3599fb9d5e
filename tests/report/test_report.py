"""``edgerec report``: the page of a run, read as a browser would."""

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
from edgerec.report import images as pictures
from edgerec.report import scoring
from edgerec.report.model import ClassFacts
from edgerec.train.confidence_calibration import reliability

EVIL = (
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
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page's elements, and its text as a person sees it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw, self.elements, self.open, self.texts = path.read_text(encoding="utf-8"), [], [], []
        self.feed(self.raw)
        self.close()
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
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
        """Whole, and nothing in it reaches outside it or runs."""
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
        policy = next(one["content"] for one in self.of("meta") if "content" in one and "default-src" in one["content"])
        assert policy.startswith("default-src 'none'; img-src data:;")
        ids = [attributes["id"] for tag, attributes in self.elements if "id" in attributes and tag == "section"]
        assert len(ids) == len(set(ids))
        return self


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    """The report of a run of which everything is there."""
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def page(made):
    return Page(Path(made.page)).check()


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may spoil."""
    shutil.copytree(run.path, tmp_path / "digits")
    return Run.at(tmp_path / "digits")


def moved(run: Run, source: str) -> Run:
    """The run with its pictures elsewhere."""
    recipe = run.recipe
    (run.path / "recipe.toml").write_text(replace(recipe, data=replace(recipe.data, source=source)).to_toml())
    return run


def renamed_images(run: Run, names: list[str]) -> None:
    """Adapt the split to the names that the images, which had these ``names``, have now."""
    dataset, record = load(run.recipe.data)[0], run.split_record
    new = dict(zip(names, dataset.names, strict=True))
    edited(
        run,
        "split.json",
        digest=dataset.digest,
        **{part: [new[name] for name in record[part]] for part in ("val", "test")},
    )


def edited(run: Run, name: str, **changes) -> None:
    path = run.path / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- Calibration ----------------------------------------------------------------------------------------------------


def two(scores):
    """Scores of two classes whose best is the first one."""
    first = np.array(scores, np.float64)
    return np.stack([first, 1 - first], axis=1)


def test_ece_by_hand():
    # Five bins: (0.4, 0.6] has 0.5625 wrong and 0.5625 right; (0.6, 0.8] 0.75, right; (0.8, 1] 0.875 wrong, 1.0 right.
    found = reliability(two([0.5625, 0.5625, 0.75, 0.875, 1.0]), np.array([1, 0, 0, 1, 0]), bins=5)
    assert [one.images for one in found.bins] == [0, 0, 2, 1, 2]
    assert [one.accuracy for one in found.bins] == [None, None, 0.5, 1.0, 0.5]
    assert [one.score for one in found.bins] == [None, None, 0.5625, 0.75, 0.9375]
    assert found.ece == pytest.approx((2 * 0.0625 + 1 * 0.25 + 2 * 0.4375) / 5)
    assert (found.accuracy, found.score, found.images) == (0.6, pytest.approx(0.75), 5)


def test_a_score_on_an_edge_belongs_below_it():
    found = reliability(two([0.5, 0.75, 1.0]), np.zeros(3, int), bins=4)
    assert [one.images for one in found.bins] == [0, 1, 1, 1]


def test_who_is_right_as_often_as_the_score_says_has_no_error():
    scores = two(np.repeat([0.625, 0.75, 0.875], 8))
    classes = np.array([0] * 5 + [1] * 3 + [0] * 6 + [1] * 2 + [0] * 7 + [1])
    assert reliability(scores, classes).ece == 0
    assert reliability(two([1.0, 1.0]), np.zeros(2, int)).ece == 0


def test_fifteen_bins():
    found = reliability(two([0.5]), np.zeros(1, int))
    assert len(found.bins) == 15
    assert (found.bins[0].low, found.bins[-1].high) == (0, 1)


# --- A page of which everything is there ----------------------------------------------------------------------------


def test_the_page_holds_what_the_run_has(run, made, page):
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
        f"{made.calibration[0].after.ece:.2%}",
        f"edgerec export {run.path} --target rpi",
    ):
        assert text in page.text, text
    assert len(page.raw) < 1_000_000
    assert made.page_bytes == Path(made.page).stat().st_size
    assert made.missing == ()


def test_the_facts_are_the_run_s(run, made):
    metrics = run.metrics
    assert made.top1.value == metrics["accuracy"] == pytest.approx(made.calibration[0].before.accuracy)
    assert made.top1.low < made.top1.value < made.top1.high
    assert [list(row) for row in made.confusion] == metrics["confusion"]
    assert [row.label for row in made.classes] == list(run.labels)
    assert sum(row.train for row in made.classes) == made.splits["train"] == metrics["train_images"]
    assert [row.test for row in made.classes] == [row["support"] for row in metrics["per_class"].values()]
    assert made.mistakes_total == sum(map(sum, metrics["confusion"])) - int(np.trace(metrics["confusion"]))
    scores = [mistake.score for mistake in made.mistakes]
    assert scores == sorted(scores, reverse=True)
    assert all(mistake.truth != mistake.answer for mistake in made.mistakes)
    assert [row.form for row in made.calibration] == ["float Keras", "int8-qat"]
    assert [(row.variant, row.chosen) for row in made.variants] == [("float32", False), ("int8-qat", True)]
    assert made.calibration[1].before.accuracy == run.variants()["int8-qat"]["forms"][-1]["top1"]
    json.dumps(made.to_dict(), allow_nan=False)


def test_the_temperature_is_the_bundle_s(made, bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert made.calibration[1].temperature == manifest["decision"]["temperature"]


def test_pictures_are_those_that_the_model_sees(made, page, run):
    images = page.of("img")
    assert len(images) == 10 * 8 + len(made.mistakes)
    assert all(one["alt"] and one["width"] == one["height"] == "28" for one in images)
    dataset, _ = run.data()
    content = base64.b64decode(images[80]["src"].partition(",")[2])
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(pixels, dataset.images[made.mistakes[0].position][:, :, 0])


def test_large_pictures_are_made_small_and_keep_their_colours():
    image = np.zeros((200, 400, 3), np.uint8)
    image[:, :, 0] = 220
    shown = pictures.shown(image)
    assert (shown.width, shown.height) == (pictures.MOST_PX, pictures.MOST_PX // 2)
    content = np.frombuffer(base64.b64decode(shown.address.partition(",")[2]), np.uint8)
    assert cv2.imdecode(content, cv2.IMREAD_COLOR)[30, 30].tolist() == pytest.approx([0, 0, 220], abs=6)


def test_the_same_run_gives_the_same_page(run, made, tmp_path):
    write_report(run, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == Path(made.page).read_bytes()


# --- What a user's data may hold ------------------------------------------------------------------------------------


def test_labels_and_file_names_are_harmless(copied, tmp_path):
    """Labels, the data's name, the run's and a variant's are what an attacker would call them."""
    dataset, _ = copied.data()
    source = tmp_path / "\"><b onclick='x'>.npz"
    raw = np.stack([dataset.original(i) for i in range(len(dataset.names))])
    np.savez(source, x_train=raw, y_train=dataset.classes, labels=np.array(EVIL))
    evil = Run.at(copied.path.rename(tmp_path / "<i>run&amp;"))
    moved(evil, str(source))
    (evil.path / "int8-qat").rename(evil.path / "<u>$x")
    edited(evil, "<u>$x/report.json", variant="<u>$x")
    (evil.path / "labels.txt").write_text("".join(f"{label}\n" for label in EVIL))
    per_class = dict(zip(EVIL, evil.metrics["per_class"].values(), strict=True))
    edited(evil, "metrics.json", per_class=per_class, labels=list(EVIL))
    renamed_images(evil, dataset.names)
    made = write_report(evil)
    page = Page(Path(made.page)).check()
    assert made.missing == ()
    for label in (*EVIL, "<i>run&amp;", "<u>$x"):
        assert " ".join(label.split()) in page.text, label
    assert not page.of("i") or all(set(one) <= {"style", "class"} for one in page.of("i"))
    assert not page.of("u")
    assert "49" not in {text.strip() for text in page.texts}
    assert any(source.name in mistake.name for mistake in made.mistakes)


def test_without_pictures_nothing_of_them_leaves_the_house(copied, tmp_path):
    dataset, _ = copied.data()
    home = tmp_path / "home-of-anna"
    home.mkdir()
    raw = np.stack([dataset.original(i) for i in range(len(dataset.names))])
    np.savez(home / "digits.npz", x_train=raw, y_train=dataset.classes, labels=np.array(dataset.labels))
    moved(copied, str(home / "digits.npz"))
    taught = copied.recipe.override({"distill.teachers": f"{home / 'large'},{home / 'larger'}"})
    (copied.path / "recipe.toml").write_text(taught.to_toml())
    renamed_images(copied, dataset.names)
    made = write_report(copied, tmp_path / "page.html", pictures=False)
    page = Page(tmp_path / "page.html").check()
    assert page.of("img") == []
    assert "home-of-anna" not in page.raw
    assert "home-of-anna" not in json.dumps(made.to_dict())
    assert made.mistakes
    assert not any(mistake.name for mistake in made.mistakes)
    assert made.mistakes[0].answer in page.text
    assert f"edgerec export {copied.path.name} --target rpi" in page.text
    (home / "digits.npz").unlink()
    write_report(copied, tmp_path / "page.html", pictures=False, overwrite=True)
    page = Page(tmp_path / "page.html").check()
    assert "digits.npz does not exist any more" in page.text
    assert "home-of-anna" not in page.raw
    assert str(copied.path) not in page.raw


# --- What may be missing --------------------------------------------------------------------------------------------


def test_pictures_that_were_moved(copied, tmp_path):
    metrics = copied.metrics
    moved(copied, str(tmp_path / "gone"))
    made = write_report(copied)
    page = Page(copied.path / "report.html").check()
    assert "gone does not exist any more; if the images were moved, add --data" in page.text
    assert page.sections == ["data", "training", "classes", "mistakes", "variants", "next", "made"]
    assert f"{metrics['accuracy']:.2%}" in page.text
    assert len(page.of("img")) == 1  # what training drew of its mistakes
    assert (made.calibration, made.mistakes, made.splits["train"]) == ((), (), metrics["train_images"])
    found = write_report(copied, data="digits", overwrite=True)
    assert (found.missing, len(found.calibration)) == ((), 2)
    other = tmp_path / "other.npz"
    np.savez(other, x_train=np.zeros((30, 8, 8), np.uint8), y_train=np.arange(30) % 10)
    with pytest.raises(DataError, match="its digest changed"):
        write_report(copied, data=str(other), overwrite=True)


def test_pictures_that_changed(copied, tmp_path):
    np.savez(tmp_path / "other.npz", x_train=np.zeros((30, 8, 8), np.uint8), y_train=np.arange(30) % 10)
    made = write_report(moved(copied, str(tmp_path / "other.npz")))
    assert "its digest changed" in made.missing[0]
    assert made.top1 is not None


def test_a_run_that_is_unfinished(copied):
    for name in ("metrics.json", "model.keras"):
        (copied.path / name).unlink()
    made = write_report(copied)
    page = Page(copied.path / "report.html").check()
    assert page.sections == ["data", "training", "next", "made"]
    assert "has not come to its end: 4 epochs so far" in page.text
    assert [step.command for step in made.next] == [f"edgerec train --resume --out {copied.path}"]
    assert (made.finished, made.top1, len(made.history)) == (False, None, 4)
    (copied.path / "history.csv").unlink()
    write_report(copied, overwrite=True)
    assert Page(copied.path / "report.html").check().sections == ["data", "next", "made"]


def test_a_run_without_variants(copied):
    shutil.rmtree(copied.path / "int8-qat")
    shutil.rmtree(copied.path / "float32")
    made = write_report(copied)
    assert Page(copied.path / "report.html").check().sections[4:] == ["calibration", "next", "made"]
    assert made.next[-1].command == f"edgerec quantize {copied.path}"
    assert made.chosen is None


def test_a_model_that_cannot_be_read(copied):
    (copied.path / "model.keras").write_bytes(b"no model")
    with (copied.path / "int8-qat" / "model.tflite").open("ab") as file:
        file.write(b"another")
    made = write_report(copied)
    assert "no mistakes and no calibration of the float model" in made.missing[0]
    assert "is not the file that was measured" in made.missing[1]
    assert made.top1 is not None
    assert Page(copied.path / "report.html").check().sections == [
        "data",
        "training",
        "classes",
        "variants",
        "next",
        "made",
    ]


def test_an_adopted_model_whose_pictures_have_no_labels(copied):
    """Its own answers are the truth: no calibration, and the variant's mistakes are where it answers otherwise."""
    dataset, _ = copied.data()
    answers = {name: dataset.labels[index] for name, index in zip(dataset.names, dataset.classes, strict=True)}
    copied.write_json("answers.json", answers)
    edited(copied, "metrics.json", adopted={"file": "theirs.keras"}, epochs=0, best_epoch=0, seconds=0.0)
    copied.write_history([])
    made = write_report(copied)
    page = Page(copied.path / "report.html").check()
    assert page.sections == ["data", "classes", "mistakes", "variants", "next", "made"]
    assert "trained elsewhere and taken as it is" in page.text
    assert "figures are agreement, not accuracy" in page.text
    assert (made.mistakes_of, made.figures_of, made.calibration) == ("int8-qat", "int8-qat", ())
    assert "int8-qat answers otherwise than the original" in page.text
    assert made.mistakes_total == round((1 - made.variants[1].top1) * made.top1.images)


def test_what_takes_too_long_is_left_out(copied, monkeypatch):
    shutil.copytree(copied.path / "int8-qat", copied.path / "int8")
    edited(copied, "int8/report.json", variant="int8", val_top1=0.0)
    monkeypatch.setattr(scoring, "BUDGET_S", -1.0)
    made = write_report(copied)
    assert [row.form for row in made.calibration] == ["float Keras", "int8-qat"]
    assert made.missing == ("no calibration of int8: those before it took -1 s",)


def test_times_are_of_the_files_that_are_there(copied):
    content = (copied.path / "int8-qat" / "model.tflite").read_bytes()
    form = copied.variants()["int8-qat"]["forms"][-1]
    row = {"size_bytes": form["size_bytes"], "gzip_bytes": form["gzip_bytes"], "median_ms": 0.25, "p95_ms": 0.5}
    rows = [row | {"variant": "int8-qat"}, row | {"variant": "float32"}]
    copied.write_json(
        "compare.json", {"rows": rows, "machine": "x86_64", "threads": 1, "notes": ["zeros <buy> nothing"]}
    )
    made = write_report(moved(copied, "nowhere"))
    assert [(row.variant, row.median_ms) for row in made.variants] == [("float32", None), ("int8-qat", 0.25)]
    assert (made.timed_on, len(content)) == ("x86_64, 1 thread", form["size_bytes"])
    page = Page(copied.path / "report.html").check()
    assert "0.250 ms" in page.text
    assert "zeros <buy> nothing" in page.text


def test_many_classes_are_a_picture(copied):
    """The table of all pairs would be larger than the page."""
    count = 120
    labels = [f"class {i}" for i in range(count)]
    metrics = copied.metrics
    per_class = {label: {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 25} for label in labels}
    edited(copied, "metrics.json", confusion=np.eye(count, dtype=int).tolist(), labels=labels, per_class=per_class)
    (copied.path / "labels.txt").write_text("".join(f"{label}\n" for label in labels))
    made = write_report(moved(copied, "nowhere"))
    page = Page(copied.path / "report.html").check()
    assert len(made.classes) == count
    assert [one["width"] for one in page.of("img") if one["alt"] == "confusion matrix"] == [str(count)]
    assert "No mistake at all." in page.text
    assert made.top1.value == metrics["accuracy"]


def test_advice_names_what_is_weak(made):
    from edgerec.report.advice import advice

    rows = [ClassFacts(label, 300, 30, 40, 0.9, 0.9, 0.95) for label in "abcd"]
    rows += [ClassFacts("rare", 40, 4, 6, 0.5, 0.5, 0.5)]
    history = ({"epoch": 4.0, "accuracy": 0.99, "val_accuracy": 0.9},)
    about = replace(made.made, best_epoch=4, epochs=4)
    steps = advice(replace(made, classes=tuple(rows), history=history, made=about, timed_on=""))
    words = "\n".join(f"{step.why} {step.command}" for step in steps)
    for text in ("rare: clearly weaker", "rare: fewer than 20", "class_weights", "9.0 points", "--compare", "export"):
        assert text in words
    steps = advice(replace(made, top1=replace(made.top1, value=0.15)))
    assert steps[0].why.startswith("the accuracy is hardly better than guessing")
    variant = replace(made.variants[1], drop_points=4.0, max_drop=1.0)
    steps = advice(replace(made, variants=(made.variants[0], variant)))
    assert f"edgerec parity {made.run} --variant int8-qat" in [step.command for step in steps]


# --- Errors, and the command ----------------------------------------------------------------------------------------


def test_what_is_there_stays(copied, tmp_path):
    moved(copied, "nowhere")
    (copied.path / "report.html").write_text("mine")
    with pytest.raises(OutputExistsError, match="add --overwrite"):
        write_report(copied)
    assert (copied.path / "report.html").read_text() == "mine"
    write_report(copied, overwrite=True)
    assert sorted(path.name for path in copied.path.glob(".*")) == []
    with pytest.raises(OutputExistsError, match="is a folder: give a file's name"):
        write_report(copied, tmp_path)
    with pytest.raises(EdgerecError, match="is not a run: make one with edgerec train DATA"):
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
def test_damaged_files_are_named(copied, name, changes, reason):
    edited(copied, name, **changes)
    with pytest.raises(RunError, match=reason):
        write_report(moved(copied, "nowhere"))
    assert not (copied.path / "report.html").exists()


def test_the_command(copied, made):
    moved(copied, "nowhere")
    done = CliRunner().invoke(app, ["report", str(copied.path), "--json"])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown["page"] == str(copied.path / "report.html")
    assert shown["top1"]["value"] == made.top1.value
    assert shown["variants"][1]["chosen"] is True
    done = CliRunner().invoke(app, ["report", str(copied.path), "--out", str(copied.path / "b.html"), "--no-pictures"])
    assert done.exit_code == 0, done.output
    assert f"report   {copied.path / 'b.html'}" in done.stdout
    assert "missing  no pictures" in done.stdout
    done = CliRunner().invoke(app, ["report", str(copied.path)])
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")


# --- In a browser ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_in_a_browser(made):
    """No request, no complaint, nothing wider than the window, and tables that sort; it can be read without script."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright (pip install playwright)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium (apt install chromium)")
    address, arguments = Path(made.page).as_uri(), ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=chromium, args=arguments)
        for width, colours, script in ((1280, "light", True), (390, "dark", False)):
            page = browser.new_page(
                viewport={"width": width, "height": 900}, color_scheme=colours, java_script_enabled=script
            )
            seen = []
            page.on("console", lambda message, seen=seen: seen.append(message.text))
            page.on("pageerror", lambda error, seen=seen: seen.append(str(error)))
            page.on("request", lambda request, seen=seen: seen.append(request.url[:60]))
            page.goto(address)
            assert page.locator("h1").inner_text() == made.name
            assert [text for text in seen if not text.startswith(("file:", "data:"))] == []
            last = page.locator("footer").bounding_box()
            assert last["x"] + last["width"] <= width
            if script:
                assert page.evaluate("document.documentElement.scrollWidth") == width
                loaded = "[...document.images].every((one) => one.complete && one.naturalWidth > 0)"
                assert page.evaluate(loaded)
                page.click("#classes table.sortable th >> text=F1 >> nth=0")
                shown = page.locator("#classes table.sortable tbody tr td:nth-child(4)").all_inner_texts()
                assert [float(text) for text in shown] == sorted(float(text) for text in shown)
            page.close()
        browser.close()
