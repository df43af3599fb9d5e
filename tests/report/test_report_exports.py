"""The report shows which variant was exported, and the mistakes of that variant."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgerec import export_bundle, write_report


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", Path(page).read_text(encoding="utf-8")).split())


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Reports before and after the export of float32, which is not the default variant."""
    folder = tmp_path_factory.mktemp("pages")
    before = write_report(run, folder / "before.html")
    export_bundle(run, "desktop", variant="float32", out=folder / "bundle")
    return before, write_report(run, folder / "after.html")


def test_no_variant_is_marked_as_exported_before_an_export(exported):
    before, _ = exported
    assert not any(row.exported for row in before.variants)
    assert before.chosen.variant == "int8-qat"
    assert before.mistakes_of == "int8-qat"
    text = text_of(before.page)
    assert "int8-qat default for export" in text
    assert "exported for" not in text
    assert "int8-qat (the default variant for edgerec export) misclassifies" in text


def test_exported_variant_is_marked(exported):
    _, after = exported
    assert {row.variant: row.exported for row in after.variants} == {"float32": ("desktop",), "int8-qat": ()}
    assert after.chosen.variant == "float32"
    assert after.mistakes_of == "float32"
    text = text_of(after.page)
    assert "float32 exported for desktop" in text
    assert "float32 (exported)" in text  # in the plot
    assert "float32 (the exported variant) misclassifies" in text
    assert any("--variant float32" in step.command for step in after.next)


def test_mistakes_show_predicted_and_true_label(exported):
    before, after = exported
    for page in (before, after):
        first = page.mistakes[0]
        assert f"predicted: {first.prediction} {first.score:.0%}" in text_of(page.page)
        assert f"label: {first.truth}" in text_of(page.page)
    # The predictions of float32 equal those of float Keras.
    assert not any(mistake.float_prediction for mistake in after.mistakes)
    assert len(after.mistakes) == after.mistakes_total


def test_variant_that_changed_after_its_export_is_not_marked(exported, run):
    path = run.variant("float32") / "report.json"
    original = path.read_text()
    path.write_text(json.dumps(json.loads(original) | {"model_sha256": "0" * 64}))
    try:
        assert run.exports() == []
        assert run.shipped() == "int8-qat"
    finally:
        path.write_text(original)
    assert run.shipped() == "float32"
