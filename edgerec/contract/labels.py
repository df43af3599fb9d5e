"""Read label files: one label per line, numbered or quoted lists, CSV, JSON, YAML, TOML and label_map.pbtxt.

YAML is parsed here, because PyYAML would be an additional dependency on devices, and because many label files that look
like YAML are not valid YAML.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

from edgerec.contract.format_detection import describe
from edgerec.errors import DataError
from edgerec.utils.bounded_parsing import parse_json, parse_toml
from edgerec.utils.text import is_printable

log = logging.getLogger(__name__)

MAX_BYTES = 4 << 20
MAX_LABEL_CHARACTERS = 500
MAX_LINE_CHARACTERS = 2 * MAX_LABEL_CHARACTERS
MAX_DEPTH = 8
ADVICE = "write one label per line, in the order of the model's outputs"

# Ultralytics, Teachable Machine, Edge Impulse, Hugging Face, fastai and COCO store labels under these keys.
_CONTAINERS = (
    *("names", "labels", "classes", "categories", "class_names", "classnames", "label_names", "label_map", "labelmap"),
    *(
        "id2label",
        "label2id",
        "idx_to_class",
        "idx2class",
        "index_to_class",
        "class_to_idx",
        "class2idx",
        "class_indices",
    ),
    *("class_index", "index_to_name", "name_to_index", "vocab", "display_names", "class_labels", "model_parameters"),
    *("modelparameters", "label"),
)
_NAMES = (
    "display_name",
    "displayname",
    "name",
    "label",
    "class_name",
    "label_name",
    "class",
    "title",
    "category",
    "text",
)
_INDICES = (
    "index",
    "idx",
    "class_index",
    "label_index",
    "class_id",
    "label_id",
    "category_id",
    "id",
    "number",
    "output",
)
_SOURCE_CODE = {".py", ".ipynb", ".js", ".ts", ".java", ".kt", ".swift", ".dart", ".c", ".cc", ".cpp", ".ino", ".md"}
_FILE_NAME = re.compile(r"[^\s/\\][^/\\]*\.(txt|json|csv|pbtxt|ya?ml)", re.IGNORECASE)

# Matches "3 label", "3: label", "3,label", "[3] label", "3. label", "3) label"
_NUMBERED = re.compile(r"[\[(]?(\d{1,7})(?:[\])]?(?:\s*[:;,=|]\s*|\s+-\s+|\s+)|[.)]\s+)(\S.*)")
# Matches "label,3", "label: 3", "label 3"
_NUMBERED_AFTER = re.compile(r"(.*?[^\s:;,=|])(?:\s*[:;,=|]\s*|\s+)(\d{1,7})")
_SEPARATED = re.compile(r"[:;,=|\t]")
_SETTING = re.compile(r"([A-Za-z_][\w.-]*)\s*[:=]\s+\S.*")
# The bounded repetitions in this pattern keep the search time linear in the file size.
_C_ARRAY = re.compile(r"categories\w{0,40}\s{0,40}\[\s{0,40}\w{0,40}\s{0,40}\]\s{0,40}=\s{0,40}(\{[^{}]*\})")


def read_labels(path: Path, count: int | None = None, model: str = "the model") -> tuple[str, ...]:
    """Read labels from a file. Return them in the order of the model's outputs.

    Args:
        path: a text file with one label per line, or a CSV, JSON, YAML, TOML or label_map.pbtxt file.
        count: the model's number of outputs. None accepts any number of labels.
        model: model name for error messages.

    Raises:
        DataError: the file cannot be read, is not a label file, or does not have ``count`` labels.
    """
    labels = parse_labels(_read(path), str(path), count)
    if count is not None and len(labels) != count:
        raise DataError(f"{path} has {len(labels)} labels, but {model} needs {count}: write one label for each class")
    return labels


def parse_labels(content: bytes, where: str = "the label file", count: int | None = None) -> tuple[str, ...]:
    """Parse a label file's content and return the labels.

    ``count``, the expected number of labels, is only used if the content is ambiguous.

    Raises:
        DataError: the content is not a label file. The message states the reason.
    """
    text = _decoded(content, where)
    suffix = Path(where).suffix.lower()
    try:
        if suffix in _SOURCE_CODE:
            raise _NotLabels(f"{suffix} is not a label format")
        return _checked(_labels_of_text(text, suffix, count))
    except _NotLabels as error:
        raise DataError(f"{where} cannot be used as a label file: {error}; {ADVICE}") from None
    except RecursionError:
        raise DataError(f"{where} cannot be used as a label file: its values are nested too deeply; {ADVICE}") from None


def in_order(lines: Sequence[str]) -> tuple[str, ...]:
    """Sort lines of the form ``index label`` by index, and remove the indices if they are 0, 1, 2, …

    Otherwise, the lines are returned unchanged.
    """
    indexed = [(int(match[1]), match[2]) for line in lines if (match := _NUMBERED.fullmatch(line))]
    if len(indexed) == len(lines) and sorted(index for index, _ in indexed) == list(range(len(lines))):
        return tuple(label for _, label in sorted(indexed))
    return tuple(lines)


def distinct(labels: Sequence[str], where: str) -> tuple[str, ...]:
    """Make duplicate labels unique, e.g. ``crane`` and ``crane (2)``, and log a warning for each duplicate."""
    known = set(labels)
    used: set[str] = set()
    result: list[str] = []
    for label in labels:
        name, number = label, 2
        while name in used or (name != label and name in known):
            name, number = f"{label} ({number})", number + 1
        if name != label:
            log.warning("%s has a duplicate label %r: output %d is renamed to %r", where, label, len(result), name)
        used.add(name)
        result.append(name)
    return tuple(result)


class _NotLabels(ValueError):
    """Raised when a file does not contain a valid list of labels. The message states the reason."""


def _read(path: Path) -> bytes:
    try:
        # Do not open a named pipe, because opening it would block.
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is not a file: expected a label file with one label per line")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DataError(f"{path} cannot be read: {reason}") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} exceeds the limit of {MAX_BYTES >> 20} MiB for label files: {ADVICE}")
    return content


def _decoded(content: bytes, where: str) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif kind := describe(content):
        raise DataError(f"{where} is not a label file: it {kind}; expected a text file with one label per line")
    else:
        encoding = "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text: open it in a text editor and save it as UTF-8") from None
    if "\0" in text:
        raise DataError(f"{where} is not a text file, because it contains null bytes: {ADVICE}")
    return text


def _checked(labels: Sequence[str]) -> tuple[str, ...]:
    labels = tuple(label.strip() for label in labels)
    if not labels:
        raise _NotLabels("the file contains no labels")
    for number, label in enumerate(labels):
        if not label:
            raise _NotLabels(f"label {number} is empty")
        if len(label) > MAX_LABEL_CHARACTERS:
            raise _NotLabels(f"label {number} has {len(label)} characters, but the limit is {MAX_LABEL_CHARACTERS}")
        if not is_printable(label):
            raise _NotLabels(
                f"label {number} contains a control character, a bidi control or an unpaired surrogate: {label!a}"
            )
    return labels


def _labels_of_text(text: str, suffix: str, count: int | None) -> Sequence[str]:
    body = text.strip()
    if match := _C_ARRAY.search(body):  # Edge Impulse libraries store the labels in model_metadata.h.
        return _strings(_Flow(match[1].replace("{", "[").replace("}", "]")).value())
    if (body[:1] in ("{", "[") and not re.match(r"\[\d+\]\s+[^\s,]", body)) or suffix == ".json":
        return _labels_of_value(_structured(body))
    if suffix == ".toml":
        try:
            return _labels_of_value(parse_toml(text))
        except ValueError as error:
            if isinstance(error, _NotLabels):
                raise
            raise _NotLabels(f"the file is not valid TOML ({error})") from None
    if re.search(r"^[ \t]*item\s*\{", text, re.MULTILINE):
        return _labels_of_pbtxt(text)
    if body[:1] == "<" and ">" in body:
        raise _NotLabels("the file contains XML or HTML")
    lines = _lines(text)
    if (container := _yaml_container(lines)) is not None:
        return _labels_of_value(container)
    if suffix in (".yaml", ".yml"):
        return _labels_of_value(_yaml_block([line for line in lines if line.strip() not in ("---", "...")]))
    return _labels_of_lines([line.strip() for line in lines if line.strip()], suffix, count)


def _lines(text: str) -> list[str]:
    return re.split(r"\r\n|\r|\n", text)  # str.splitlines also splits at characters that labels may contain.


def _refuse_long(lines: Iterable[str]) -> None:
    """Reject overlong lines, because the time for pattern matching is quadratic in the line length."""
    longest = max(map(len, lines), default=0)
    if longest > MAX_LINE_CHARACTERS:
        raise _NotLabels(f"a line has {longest:,} characters, but the limit is {MAX_LINE_CHARACTERS:,}")


def _labels_of_lines(lines: list[str], suffix: str, count: int | None) -> Sequence[str]:
    if not lines:
        raise _NotLabels("the file contains no labels")
    if len(lines) == 1 and count != 1 and (parts := _parts_of_line(lines[0], count)):
        return parts
    _refuse_long(lines)
    lines = _without_comments(lines, count)
    # In a list copied from source code, each line ends with a comma.
    if len(lines) > 1 and all(line.endswith(",") for line in lines[:-1]):
        lines = [line.removesuffix(",").rstrip() for line in lines]
    if all(re.match(r"[-*•]\s", line) for line in lines):
        lines = [line[1:].strip() for line in lines]
    if suffix in (".csv", ".tsv") or _has_header(lines):
        return _labels_of_csv(lines, count)
    numbered = _numbered(lines)
    if numbered is not None:
        return numbered
    settings = [match[1] for line in lines if (match := _SETTING.fullmatch(line))]
    if len(settings) == len(lines) > 1 and len(set(settings)) == len(settings):
        raise _NotLabels(f"the file contains settings such as {lines[0]!r} instead of labels{_mentioned(lines)}")
    return [_unquoted(line) for line in lines]


def _without_comments(lines: list[str], count: int | None) -> list[str]:
    # A line that contains only "#" may be a label for character recognition instead of a comment.
    remaining = [line for line in lines if not re.match(r"(#|//)\s*\S", line)]
    if remaining and len(remaining) != len(lines) and not (len(lines) == count != len(remaining)):
        lines = remaining
    shorter = [re.sub(r"(?<!\s)\s+#\s.*", "", line) for line in lines]
    return shorter if len(set(shorter)) == len(set(lines)) else lines


def _parts_of_line(line: str, count: int | None) -> list[str] | None:
    """Split a line that contains all labels, as in files for NVIDIA DeepStream. Return None for other lines."""
    for separator in (";", ",", "\t", "|"):
        try:
            parts = [_unquoted(part) for part in next(csv.reader([line], delimiter=separator, skipinitialspace=True))]
        except csv.Error:  # The csv module limits the size of a field.
            continue
        parts = parts[:-1] if parts and not parts[-1] else parts
        if len(parts) > 1 and ((count is None and separator == ";") or len(parts) == count):
            return parts
    return None


def _numbered(lines: list[str]) -> Sequence[str] | None:
    """Return the labels if all lines have the form ``index label`` or ``label index``, otherwise None."""
    interpretations = []
    for pattern, index, name in ((_NUMBERED, 1, 2), (_NUMBERED_AFTER, 2, 1)):
        matches = [match for line in lines if (match := pattern.fullmatch(line))]
        if not lines or len(matches) != len(lines):
            continue
        indices = [int(match[index]) for match in matches]
        names = [_unquoted(match[name]) for match in matches]
        separated = all(_SEPARATED.search(match[0][: match.start(2)][match.start(1) :]) for match in matches)
        # Without a separator, the number may be part of the label, as in "5 euro" and "10 euro".
        different = len(set(names)) >= (0.9 * len(names) if pattern is _NUMBERED else len(names))
        if not (separated or different):
            continue
        try:
            interpretations.append(_by_index(zip(indices, names, strict=True)))
        except _NotLabels:
            meant = separated or (pattern is _NUMBERED and indices[0] in (0, 1) and len(lines) > 2)
            if meant and len(set(names)) > 1 and not all(name.isdigit() for name in names):
                raise
    if len({tuple(interpretation) for interpretation in interpretations}) > 1:
        raise _NotLabels("each line has two numbers, so labels and indices cannot be told apart")
    return interpretations[0] if interpretations else None


def _has_header(lines: list[str]) -> bool:
    if len(lines) < 2 or not _SEPARATED.search(lines[0]):
        return False
    cells = {_key(_unquoted(cell)) for cell in re.split(r"[;,\t|]", lines[0])}
    return len(cells) > 1 and cells <= {*_NAMES, *_INDICES} and bool(cells & {*_NAMES}) and bool(cells & {*_INDICES})


def _labels_of_csv(lines: list[str], count: int | None) -> Sequence[str]:
    separator = max(",;\t|", key=lines[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
    except csv.Error as error:
        raise _NotLabels(f"the file is not valid CSV ({error})") from None
    columns = [_key(cell) for cell in rows[0]]
    if len(columns) == 1 and all(len(row) == 1 for row in rows):
        header = columns[0] in (*_NAMES, "labels", "classes", "names") and len(rows) > 1 and len(rows) != count
        return _numbered([row[0] for row in rows]) or [row[0] for row in rows[1 if header else 0 :]]
    names = [name for name in _NAMES if name in columns]
    indices = [index for index in _INDICES if index in columns and index not in names[:1]]
    if (
        names and not indices and columns[0] == "" and len(columns) == 2
    ):  # pandas leaves the header of the index column empty.
        indices, columns = ["id"], ["id", columns[1]]
    if names and indices:
        name, index = columns.index(names[0]), columns.index(indices[0])
        rows = rows[1:]
    elif len(rows[0]) == 2 and _is_index(rows[0][0]) != _is_index(rows[0][1]):
        index, name = (0, 1) if _is_index(rows[0][0]) else (1, 0)
    elif len(rows[0]) == 2 and (numbered := _numbered(lines)) is not None:
        return numbered
    else:
        raise _NotLabels(f"the first line has {len(columns)} columns, expected an index column and a name column")
    if wrong := next((row for row in rows if len(row) <= max(name, index) or not _is_index(row[index])), None):
        raise _NotLabels(f"the line {','.join(wrong)[:60]!r} has no index")
    return _by_index((int(row[index]), row[name]) for row in rows)


def _labels_of_value(value: Any, depth: int = 0) -> Sequence[str]:
    if depth > MAX_DEPTH:
        raise _NotLabels("the values are nested too deeply")
    if isinstance(value, list):
        return _labels_of_list(value)
    if not isinstance(value, dict) or not value:
        raise _NotLabels("the file contains no labels")
    keys = [str(key) for key in value]
    # If the values are integers, as in {"0": 1, "1": 0}, the keys are labels and the values are indices.
    if all(map(_is_index, keys)) and not all(isinstance(item, int) for item in value.values()):
        return _by_index((int(key), _name(item)) for key, item in value.items())
    if all(map(_is_index, value.values())):
        return _by_index((int(item), key) for key, item in value.items())
    interpretations, problem = [], None
    for key, item in value.items():
        if _key(key) in _CONTAINERS and isinstance(item, dict | list) and item:
            try:
                interpretations.append(tuple(_labels_of_value(item, depth + 1)))
            except _NotLabels as error:
                problem = error
    if not interpretations and problem is not None:
        raise problem
    if not interpretations:
        raise _NotLabels(f"none of the keys ({', '.join(keys[:6])}) contains the labels{_mentioned(value.values())}")
    if len(set(interpretations)) > 1:
        raise _NotLabels("the file contains several different lists of labels")
    return interpretations[0]


def _labels_of_list(value: list[Any]) -> Sequence[str]:
    if value and all(isinstance(item, dict) for item in value):
        keyed = [{_key(key): entry for key, entry in item.items()} for item in value]
        index = next((key for key in _INDICES if all(_is_index(item.get(key)) for item in keyed)), None)
        if index is not None:
            return _by_index((int(item[index]), _name(item)) for item in keyed)
    return [_name(item) for item in value]


def _name(value: Any) -> str:
    """Return the label of an entry, which may be a string, a number, a list or an object with a name."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list) and value and isinstance(value[-1], str):  # ["n01440764", "tench"]
        return value[-1]
    if isinstance(value, dict):
        keyed = {_key(key): entry for key, entry in value.items()}
        for key in _NAMES:
            if isinstance(keyed.get(key), str):
                return cast(str, keyed[key])
    raise _NotLabels(f"{json.dumps(value, ensure_ascii=False)[:60]} is not a label")


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _NotLabels("the list contains items that are not strings")
    return value


def _is_index(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.isdecimal() and len(value) < 8
    )


def _by_index(pairs: Iterable[tuple[int, str]]) -> list[str]:
    """Sort labels by index. The indices must be unique, consecutive, and start at 0 or 1."""
    names: dict[int, str] = {}
    for index, name in pairs:
        if index in names:
            raise _NotLabels(f"index {index} is used for two labels, {names[index]!r} and {name!r}")
        names[index] = name
    first = 0 if 0 in names else 1
    if missing := next((index for index in range(first, first + len(names)) if index not in names), None):
        raise _NotLabels(f"the indices are not consecutive: {missing} is missing")
    if first not in names:
        raise _NotLabels("the indices do not start at 0 or 1")
    return [names[index] for index in sorted(names)]


def _structured(text: str) -> Any:
    try:
        return parse_json(text, object_pairs_hook=_without_repeats)
    except ValueError as error:
        if isinstance(error, _NotLabels):
            raise
        reason = str(error)
    try:  # one JSON object per line
        return [parse_json(line, object_pairs_hook=_without_repeats) for line in _lines(text) if line.strip()]
    except ValueError:
        pass
    try:
        return _Flow(text).value()
    except _NotLabels:
        raise _NotLabels(f"the file is not valid JSON ({reason})") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise _NotLabels(f"the key {key!r} occurs twice")
        result[key] = value
    return result


class _Flow:
    """Parser for Python literals and YAML flow collections, such as ``['a', b]`` and ``{0: 'a', 1: b}``."""

    _TOKEN = re.compile(
        r"\s*(?:(?P<mark>[\[\]{},])|\"(?P<double>(?:[^\"\\]|\\.)*)\"|'(?P<single>(?:[^'\\]|\\.|'')*)'"
        r"|(?P<colon>:)|(?P<plain>[^\[\]{},:'\"\s][^\[\]{},:]*))",
        re.DOTALL,
    )

    def __init__(self, text: str) -> None:
        self._text, self._at, self._depth = text, 0, 0

    def value(self) -> Any:
        """Parse the text, which must contain a single list or map."""
        result = self._item(*self._next())
        if self._text[self._at :].strip():
            raise _NotLabels(f"unexpected text after the list: {self._text[self._at :].strip()[:40]!r}")
        return result

    def _next(self) -> tuple[str, str]:
        match = self._TOKEN.match(self._text, self._at)
        if match is None:
            raise _NotLabels("a bracket is not closed")
        self._at = match.end()
        kind = cast(str, match.lastgroup)
        text = match[kind].strip() if kind == "plain" else match[kind]
        if kind == "double":
            text = re.sub(r"\\(.)", r"\1", text)
        elif kind == "single":
            text = re.sub(r"\\(.)", r"\1", text).replace("''", "'")
        return kind, text

    def _item(self, kind: str, text: str) -> Any:
        if kind in ("double", "single", "plain"):
            return text
        if text not in ("[", "{"):
            raise _NotLabels(f"expected a label, found {text!r}")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotLabels("the values are nested too deeply")
        result = self._list() if text == "[" else self._map()
        self._depth -= 1
        return result

    def _list(self) -> list[Any]:
        items: list[Any] = []
        while (token := self._next()) != ("mark", "]"):
            if token == ("mark", ",") and items:
                continue
            items.append(self._item(*token))
        return items

    def _map(self) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        while (token := self._next()) != ("mark", "}"):
            if token == ("mark", ",") and pairs:
                continue
            if token[0] in ("mark", "colon") or self._next()[0] != "colon":
                raise _NotLabels(f"expected a key and a value, found {token[1]!r}")
            pairs.append((token[1], self._item(*self._next())))
        return _without_repeats(pairs)


def _yaml_container(lines: list[str]) -> Any:
    """Return the value of a top-level YAML key that contains labels, e.g. ``names``, or None if there is none."""
    for number, line in enumerate(lines):
        match = re.fullmatch(r"([A-Za-z_]\w*):(\s.*)?", line)
        if match is None or _key(match[1]) not in _CONTAINERS:
            continue
        first = _without_yaml_comment(match[2] or "")
        rest = []
        for following in (lines[i] for i in range(number + 1, len(lines))):
            if following.strip() and not re.match(r"[\s\-#\]}]", following):
                break
            rest.append(following)
        if first[:1] in ("[", "{"):
            return _Flow("\n".join([first, *map(_without_yaml_comment, rest)])).value()
        if not first and any(each.strip() for each in rest):
            return _yaml_block(rest)
    return None


def _yaml_block(lines: list[str]) -> Any:
    """Parse lines of the form ``- label`` or ``key: label``, all with the same indentation."""
    _refuse_long(lines)
    items: list[str] = []
    pairs: list[tuple[str, Any]] = []
    indents = set()
    for line in lines:
        text = _without_yaml_comment(line)
        if not text:
            continue
        indents.add(len(line) - len(line.lstrip()))
        if text.startswith("- "):
            items.append(_yaml_scalar(text[2:].strip()))
        elif match := re.fullmatch(r"(\"[^\"]*\"\s*|'[^']*'\s*|[^\s:][^:]*):\s+(\S.*)", text):
            pairs.append((_unquoted(match[1]), _yaml_scalar(match[2].strip())))
        else:
            raise _NotLabels(f"the line {text[:60]!r} is neither '- label' nor 'index: label'")
    if len(indents) > 1 or (items and pairs):
        raise _NotLabels("the YAML code is nested, or mixes lists and maps")
    return items or _without_repeats(pairs)


def _without_yaml_comment(line: str) -> str:
    return re.sub(r"(^|\s)#.*$", "", line).strip() if line.count('"') + line.count("'") == 0 else line.strip()


def _yaml_scalar(text: str) -> Any:
    if text[:1] in ("[", "{"):
        return _Flow(text).value()
    if text[:1] in ("&", "*", "!", "|", ">", "%", "@", "`"):
        raise _NotLabels(f"this YAML syntax is not supported in label files: {text[:40]!r}")
    if re.fullmatch(r"(\"[^\"]*\"|'[^']*')\s+#.*", text):
        text = text[: text.rindex("#")].rstrip()
    return _unquoted(text)


def _labels_of_pbtxt(text: str) -> Sequence[str]:
    """Return the display names in a TensorFlow label_map.pbtxt file, or the names if a display name is missing."""
    token = re.compile(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'|#[^\n]*|([\w.+-]+)|([{}:;,<>\[\]])|\s+", re.DOTALL)
    items: list[dict[str, str]] = []
    key, at, depth = "", 0, 0
    while at < len(text):
        match = token.match(text, at)
        if match is None:
            raise _NotLabels(f"the label map has a syntax error at {text[at : at + 30]!r}")
        at = match.end()
        double, single, word, mark = match.groups()
        if mark == "{":
            depth += 1
            if depth == 1:
                items.append({})
        elif mark == "}":
            depth -= 1
        elif depth == 1 and items and (double is not None or single is not None):
            items[-1].setdefault(key, re.sub(r"\\(.)", r"\1", double if double is not None else single))
        elif depth == 1 and word is not None and key == "id" and _is_index(word):
            items[-1].setdefault(key, word)
            key = ""
        elif word is not None:
            key = word
    if depth:
        raise _NotLabels("an item in the label map has no closing brace")
    if any("id" not in item or not ("name" in item or "display_name" in item) for item in items):
        raise _NotLabels("an item in the label map has no id or no name")
    key = "display_name" if all("display_name" in item for item in items) else "name"
    return _by_index((int(item["id"]), item.get(key) or item.get("display_name", "")) for item in items)


def _unquoted(text: str) -> str:
    text = text.strip()
    if (
        len(text) > 1
        and text[0] == text[-1]
        and text[0] in "\"'"
        and text[0] not in text[1:-1].replace(text[0] * 2, "")
    ):
        return text[1:-1].replace(text[0] * 2, text[0]).strip()
    return text


def _key(text: Any) -> str:
    return re.sub(r"[\s-]+", "_", str(text).strip().lower())


def _mentioned(values: Iterable[Any]) -> str:
    """Return a hint for an error message if one of the values looks like the name of a label file."""
    for value in values:
        if isinstance(value, str) and (match := _FILE_NAME.search(value.split(":")[-1].strip())):
            return f"; {match[0]!r} may be the label file"
    return ""
