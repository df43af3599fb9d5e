"""Tests of drawing labels in any script."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from edgerec.camera.frame import Frame, Result
from edgerec.camera.sinks.window import overlay
from edgerec.contract.decision import Classification

# Pairs of different labels with the same number of letters, in Hindi, Thai and Arabic.
PAIRS = {"hindi": ("कुत्ता", "बिल्ली"), "thai": ("แมวนำ", "สุนัข"), "arabic": ("كلب", "قطة"), "emoji": ("🐶", "🐱")}


def drawn_label(label: str, index: int = 3) -> np.ndarray:
    classification = Classification(label, index, 0.93, (), np.zeros(4, np.float32))
    frame = Frame(np.zeros((360, 480, 3), np.uint8), 0, 0.0, "test")
    return overlay(Result(frame, classification, 0.0), 25.0)[360:392]


@pytest.fixture
def fonts(tmp_path, monkeypatch):
    """Return a function that replaces fontconfig by a program that prints the given lines, and clears all caches."""

    def install(*lines: str) -> None:
        from edgerec.camera.sinks import label_text
        from edgerec.utils import fonts

        listing, program = tmp_path / "listing", tmp_path / "bin" / "fc-list"
        listing.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ $# -gt 0 ] && cat '{listing}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        fonts.installed_fonts.cache_clear()
        label_text.label_text.cache_clear()
        label_text.warn_once.cache_clear()

    yield install
    install()


def dejavu() -> str:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return f"{path}\t0\tTrue\t80\t0\tDejaVu Sans\t20-7e a0-2e9 370-3ff 600-6ff fe70-fefc"


@pytest.mark.parametrize("script", PAIRS)
def test_different_labels_look_different_without_a_font(script, fonts):
    fonts()
    first, second = PAIRS[script]
    # The escaped names have the same width, so that only the text can differ.
    assert (drawn_label(first, 3) != drawn_label(second, 3)).any()
    assert (drawn_label(first, 3) != drawn_label(first, 1)).any(), "the class index is part of the text"


def test_missing_font_is_logged_once(fonts, caplog):
    fonts()
    caplog.set_level(logging.WARNING, "edgerec")
    for label in (*PAIRS["hindi"], *PAIRS["thai"], *PAIRS["hindi"]):
        drawn_label(label)
    assert len(caplog.records) == 1
    assert "apt install" in caplog.text


def test_arabic_is_drawn_from_right_to_left_with_joined_letters(fonts, caplog):
    fonts(dejavu())
    joined = drawn_label("كلب")
    letters = [drawn_label(letter) for letter in "كلب"]
    assert not caplog.records
    # Joined letters are narrower than the same letters side by side.
    widths = [np.flatnonzero(image[:, :120].max(axis=(0, 2)))[-1] for image in (joined, *letters)]
    assert widths[0] < sum(widths[1:])
    assert (drawn_label("كلب") != drawn_label("بلك")).any()


def test_text_in_two_fonts_uses_both(fonts, caplog):
    from edgerec.utils.fonts import installed_fonts, split_by_font

    latin = dejavu().rsplit("\t", 1)[0] + "\t20-7e"
    arabic = dejavu().rsplit("\t", 1)[0] + "\t600-6ff"
    fonts(latin, arabic, "/x/variable.ttf\t0\tTrue\t[0 200]\t0\tV\t600-6ff", "broken")
    parts = split_by_font("dog كلب", installed_fonts())
    assert parts is not None
    assert [text for text, _ in parts] == ["dog ", "كلب"]
    assert (drawn_label("dog كلب") != drawn_label("dog قطة")).any()
    assert not caplog.records


def test_long_label_stays_inside_the_image(fonts):
    fonts(dejavu())
    assert drawn_label("كلب " * 100).shape == (32, 480, 3)


def test_marks_and_joined_emoji_stay_with_their_character(fonts):
    from edgerec.utils.fonts import ascii_text, installed_fonts, split_by_font

    fonts(
        "/x/e.ttf\t0\tTrue\t80\t0\tE\t1f469 1f680",
        "/x/d.ttf\t0\tTrue\t80\t0\tD\t915-94d",
        "/x/a.ttf\t0\tTrue\t80\t0\tA\t20-7e",
    )
    parts = split_by_font("a👩\u200d🚀की", installed_fonts())
    assert parts is not None
    assert [text for text, _ in parts] == ["a", "👩\u200d🚀", "की"]
    assert split_by_font("犬", installed_fonts()) is None
    assert ascii_text("Müller") == "Muller"
    assert ascii_text("犬") == "\\u72ac"


def test_real_fontconfig_lists_fonts():
    from edgerec.utils.fonts import installed_fonts

    installed_fonts.cache_clear()
    assert bool(installed_fonts()) == bool(shutil.which("fc-list"))
    assert all(font.path.is_file() for font in installed_fonts()[:5])
