"""Plots with labels in any script."""

from __future__ import annotations

import warnings

import numpy as np

from edgerec.data.dataset_plots import ImageRow, image_table


def test_characters_without_a_font_cause_a_single_log_line(tmp_path, caplog):
    image = np.zeros((8, 8, 3), np.uint8)
    rows = [ImageRow("\U0001f9ff \U000130c0", "2 images", [image, image], ["\udce9.png", "a"])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image_table(rows, (), "heading", "caption", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    assert "the installed fonts lack" in caplog.text
    assert "Glyph" not in caplog.text
