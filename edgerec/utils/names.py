"""Convert labels to valid file and folder names.

A library such as pathvalidate is not sufficient, because it removes invalid characters, so that different labels may
get the same name.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from edgerec.utils.folders import is_hidden

# File systems allow 255 bytes per name, but the names of temporary files have an additional suffix.
MAX_BYTES = 200
_DIGEST_SEPARATOR = "~"
_FORBIDDEN = re.compile(rf'[{_DIGEST_SEPARATOR}/\\:*?"<>|]')
# Windows reserves these names even with a suffix, e.g. "con.txt".
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)
_SPLITS = ("train", "val", "test")


def file_names(labels: Iterable[str]) -> dict[str, str]:
    """Map labels to unique file names that are valid on all file systems.

    If the label is a valid name, the name is the label. All other names end with a digest of the label, e.g. ``a_b~…``
    for ``a/b``. A digest is also added to labels that differ only in case or in the encoding of accents, because some
    file systems do not distinguish them, and to ``train``, ``val`` and ``test``, because they are names of splits.
    """
    labels = set(labels)
    similar = Counter(_folded(label) for label in labels)
    return {label: label if similar[_folded(label)] == 1 and _is_name(label) else _changed(label) for label in labels}


def file_name(label: str) -> str:
    """Convert a label to a valid file name. Use :func:`file_names` for labels that may differ only in case."""
    return file_names([label])[label]


def _folded(label: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", label).casefold())


def _is_name(label: str) -> bool:
    return (
        0 < len(label.encode(errors="replace")) <= MAX_BYTES
        and label.isprintable()
        and label == label.strip(" .")
        and not _FORBIDDEN.search(label)
        and not _RESERVED.fullmatch(label)
        and not is_hidden(label)
        and label.lower() not in _SPLITS
    )


def _changed(label: str) -> str:
    digest = hashlib.sha256(label.encode(errors="surrogatepass")).hexdigest()[:16]
    text = _FORBIDDEN.sub("_", "".join(c if c.isprintable() else "_" for c in label)).strip(" .")
    text = f"_{text}" if _RESERVED.fullmatch(text) else text
    readable = text.encode()[: MAX_BYTES - len(_DIGEST_SEPARATOR + digest)].decode(errors="ignore")
    return f"{readable or 'label'}{_DIGEST_SEPARATOR}{digest}"
