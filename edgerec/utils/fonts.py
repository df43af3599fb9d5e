"""Find installed fonts for text in any script.

Neither Matplotlib nor Pillow searches other fonts for characters that are missing in a font.
"""

from __future__ import annotations

import functools
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgerec.utils.child_process import run_program

TIMEOUT_S = 10.0
MAX_FONTS = 20_000
_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
_FORMAT = "\t".join(f"%{{{name}}}" for name in ("file", "index", "scalable", "weight", "slant", "family[0]", "charset"))
_REGULAR = 80  # fontconfig weight
# Zero-width joiners, variation selectors, skin tones and emoji tags modify the previous character.
_JOINER = "\u200d"
_JOINED = ((0xFE00, 0xFE0F), (0x1F3FB, 0x1F3FF), (0xE0020, 0xE007F))


@dataclass(frozen=True)
class Font:
    """An installed font.

    Attributes:
        path, index: the font file's path, and the font's index in this file.
        family: font family name.
        scalable: False for bitmap fonts, which have only a few sizes.
        ranges: first and last code point of each range of supported characters.
    """

    path: Path
    index: int
    family: str
    scalable: bool
    ranges: tuple[tuple[int, int], ...]

    def has(self, text: str) -> bool:
        """Return whether the font contains all visible characters of ``text``."""
        return all(_invisible(char) or any(low <= ord(char) <= high for low, high in self.ranges) for char in text)


@functools.cache
def installed_fonts() -> tuple[Font, ...]:
    """List the installed fonts with fontconfig, starting with upright, regular-weight sans-serif fonts.

    Returns an empty tuple if ``fc-list`` is missing, fails or takes longer than ``TIMEOUT_S``.
    """
    program = shutil.which("fc-list")
    if program is None:
        return ()
    command = [program, "--format", _FORMAT + "\n"]
    listing = run_program(command, timeout_s=TIMEOUT_S, errors="surrogateescape")
    if listing.code:
        return ()
    fonts = []
    for line in listing.stdout.splitlines()[:MAX_FONTS]:
        fields = line.split("\t")
        if len(fields) == 7 and fields[0].lower().endswith(_SUFFIXES):
            try:
                fonts.append((_rank(fields), _font(fields)))
            except ValueError:
                continue  # fc-list lists the instances of a variable font separately.
    return tuple(font for _, font in sorted(fonts, key=lambda entry: entry[0]))


def _rank(fields: Sequence[str]) -> tuple[bool, bool, bool, float, str]:
    file, _, _, weight, slant, family, _ = fields
    return slant != "0", "sans" not in family.lower(), "mono" in family.lower(), abs(float(weight) - _REGULAR), file


def _font(fields: Sequence[str]) -> Font:
    file, index, scalable, _, _, family, charset = fields
    ends = [(part.split("-")[0], part.split("-")[-1]) for part in charset.split()]
    ranges = tuple((int(low, 16), int(high, 16)) for low, high in ends)
    return Font(Path(file), int(index), family, scalable == "True", ranges)


def split_by_font(text: str, fonts: Sequence[Font]) -> list[tuple[str, Font]] | None:
    """Split a string into parts that each need only one font. Return None if all fonts lack a character."""
    whole = next((font for font in fonts if font.has(text)), None)
    if whole is not None:
        return [(text, whole)]
    parts: list[tuple[str, Font]] = []
    for cluster in _clusters(text):
        if parts and (cluster.isspace() or parts[-1][1].has(cluster)):
            parts[-1] = parts[-1][0] + cluster, parts[-1][1]
            continue
        font = next((font for font in fonts if font.has(cluster)), None)
        if font is None:
            return None
        parts.append((cluster, font))
    return parts


def _clusters(text: str) -> Iterator[str]:
    """Yield the grapheme clusters of a string, i.e. characters with their combining marks."""
    cluster = ""
    for char in text:
        joined = unicodedata.category(char) in ("Mn", "Mc", "Me") or _invisible(char) or cluster.endswith(_JOINER)
        if cluster and not joined:
            yield cluster
            cluster = ""
        cluster += char
    if cluster:
        yield cluster


def _invisible(char: str) -> bool:
    return char == _JOINER or any(low <= ord(char) <= high for low, high in _JOINED)


def needs_shaping(text: str) -> bool:
    """Return whether a string needs a layout engine, e.g. for right-to-left text, combining marks or joined emoji."""
    return any(
        unicodedata.bidirectional(char) in ("R", "AL") or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf")
        for char in text
    )


def ascii_text(text: str) -> str:
    """Convert a string to ASCII by removing accents or, if this is not sufficient, escaping non-ASCII characters."""
    bare = "".join(char for char in unicodedata.normalize("NFKD", text) if unicodedata.category(char) != "Mn")
    # Only Latin accents are removed, because combining marks of other scripts change a word's meaning.
    return bare if bare.isascii() else text.encode("ascii", "backslashreplace").decode()
