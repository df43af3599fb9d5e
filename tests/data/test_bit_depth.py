"""Tests of the black and white levels of a data set whose 16-bit files have different ranges."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from edgerec.data import load
from edgerec.recipe import DataSection


@pytest.mark.parametrize("brightest", [0, 5, 11])
def test_levels_are_the_range_over_all_files(tmp_path, brightest):
    rng = np.random.default_rng(0)
    for label in ("cold", "hot"):
        (tmp_path / label).mkdir()
        for number in range(6):
            image = rng.integers(0, 1000, (16, 16)).astype(np.uint16)
            if number + 6 * (label == "hot") == brightest:
                image[:8] += 3000
            cv2.imwrite(str(tmp_path / label / f"{number}.png"), image)
    _, section = load(DataSection(source=str(tmp_path), input_size=16))
    assert (section.black_level, section.white_level) == (0, 4095)
