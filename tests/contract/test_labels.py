"""Label files of other tools are read in the order of the model's outputs, or refused with a reason."""

from __future__ import annotations

import json

import pytest

from edgerec.contract.labels import MAX_BYTES, read_labels
from edgerec.errors import DataError

FLOWERS = ("daisy", "dandelion", "roses", "sunflowers", "tulips")
NUMBERS = list(enumerate(FLOWERS))


def lines(*items: str) -> str:
    return "\n".join(items)


ACCEPTED = {
    "plain.txt": lines(*FLOWERS),
    "windows.txt": "\ufeff" + "\r\n".join(FLOWERS) + "\r\n",
    "old_mac.txt": "\r".join(FLOWERS),
    "comments.txt": lines("# the flowers", *FLOWERS, "", "# end"),
    "trailing_comments.txt": lines(*(f"{name}  # output {n}" for n, name in NUMBERS)),
    "quotes.txt": lines(*(f'"{name}"' for name in FLOWERS)),
    "copied_from_code.txt": lines(*(f"'{name}'," for name in FLOWERS)),
    "dashes.txt": lines(*(f"- {name}" for name in FLOWERS)),
    "space.txt": lines(*(f"{n} {name}" for n, name in NUMBERS)),
    "tab.txt": lines(*(f"{n}\t{name}" for n, name in NUMBERS)),
    "comma.txt": lines(*(f"{n},{name}" for n, name in NUMBERS)),
    "colon.txt": lines(*(f"{n}: {name}" for n, name in NUMBERS)),
    "zeros.txt": lines(*(f"{n:03} {name}" for n, name in NUMBERS)),
    "dots.txt": lines(*(f"{n + 1}. {name}" for n, name in NUMBERS)),
    "brackets.txt": lines(*(f"[{n}] {name}" for n, name in NUMBERS)),
    "from_one.txt": lines(*(f"{n + 1} {name}" for n, name in NUMBERS)),
    "reversed.txt": lines(*(f"{n} {name}" for n, name in reversed(NUMBERS))),
    "label_comma.txt": lines(*(f"{name},{n}" for n, name in reversed(NUMBERS))),
    "label_space.txt": lines(*(f"{name} {n}" for n, name in reversed(NUMBERS))),
    "label_colon_from_one.txt": lines(*(f"{name}: {n + 1}" for n, name in NUMBERS)),
    "error_line.txt": ";".join(FLOWERS),
    "header.csv": lines("index,label", *(f"{n},{name}" for n, name in reversed(NUMBERS))),
    "columns.csv": lines("wnid,class_id,name", *(f"n{n:08},{n},{name}" for n, name in reversed(NUMBERS))),
    "semicolons.csv": lines("name;id", *(f"{name};{n + 1}" for n, name in reversed(NUMBERS))),
    "pandas.csv": lines(",label", *(f'{n},"{name}"' for n, name in NUMBERS)),
    "one_column.csv": lines("label", *FLOWERS),
    "header.tsv": lines("id\tname", *(f"{n}\t{name}" for n, name in NUMBERS)),
    "list.json": json.dumps(FLOWERS),
    "index_to_name.json": json.dumps({str(n): name for n, name in reversed(NUMBERS)}),
    "class_indices.json": json.dumps({name: n for n, name in reversed(NUMBERS)}),
    "imagenet_class_index.json": json.dumps({str(n): [f"n{n:08}", name] for n, name in NUMBERS}),
    "config.json": json.dumps(
        {
            "model_type": "vit",
            "id2label": {str(n): name for n, name in NUMBERS},
            "label2id": {name: n for n, name in NUMBERS},
        }
    ),
    "metadata.json": json.dumps({"tfjsVersion": "1.3", "labels": FLOWERS, "imageSize": 224}),
    "edge_impulse.json": json.dumps({"modelParameters": {"labels": FLOWERS, "label_count": 5}, "project": {"id": 1}}),
    "coco.json": json.dumps({"categories": [{"id": n + 1, "name": name} for n, name in reversed(NUMBERS)]}),
    "signature.json": json.dumps({"format": "tf_lite", "classes": {"Label": FLOWERS}}),
    "lines.json": lines(*(json.dumps({"id": n, "label": name}) for n, name in reversed(NUMBERS))),
    "python.txt": str(list(FLOWERS)),
    "python_map.txt": str(dict(reversed(NUMBERS))),
    "labels.toml": f"names = {json.dumps(FLOWERS)}",
    "data.yaml": lines("# flowers", "path: ../flowers", "nc: 5", "names:", *(f"  {n}: {name}" for n, name in NUMBERS)),
    "list.yaml": lines("train: images/train", "names:", *(f"- {name}" for name in FLOWERS), "val: images/val"),
    "flow.yaml": lines("nc: 5", f"names: {list(FLOWERS)}"),
    "wrapped.yml": lines("names: [ daisy, 'dandelion',", '  "roses", sunflowers,', "  tulips ]", "nc: 5"),
    "bare.yaml": lines("---", *(f"{n}: {name}" for n, name in NUMBERS)),
    "name_first.yaml": lines(*(f"{name}: {n}" for n, name in reversed(NUMBERS))),
    "label_map.pbtxt": lines(
        *(f"item {{\n  name: '/m/{n}'\n  id: {n + 1}\n  display_name: \"{name}\"\n}}" for n, name in reversed(NUMBERS))
    ),
    "compact.pbtxt": " ".join(f'item {{ id: {n} name: "{name}" }}' for n, name in NUMBERS),
    "model_metadata.h": lines(
        "#define EI_CLASSIFIER_LABEL_COUNT 5",
        "const char* ei_classifier_inferencing_categories[] = { " + ", ".join(f'"{n}"' for n in FLOWERS) + " };",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_label_formats_of_other_tools_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_text(ACCEPTED[name], encoding="utf-8", newline="")
    assert read_labels(path) == FLOWERS


def test_utf16_is_read(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("pâquerette\r\n猫\r\n".encode("utf-16"))
    assert read_labels(path) == ("pâquerette", "猫")


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("5 euro\n10 euro\n20 euro", ("5 euro", "10 euro", "20 euro")),
        ("2 euro\n1 euro\n0 euro", ("2 euro", "1 euro", "0 euro")),
        ("2 apples\n3 pears", ("2 apples", "3 pears")),
        ("Class 1\nClass 2\nClass 3", ("Class 1", "Class 2", "Class 3")),
        ("0\n1\n2", ("0", "1", "2")),
        ("C#\nF#\nG", ("C#", "F#", "G")),
        ("it's\ndon't", ("it's", "don't")),
        ("tench, Tinca tinca\ngoldfish, Carassius auratus", ("tench, Tinca tinca", "goldfish, Carassius auratus")),
        ("no\nyes", ("no", "yes")),
        ("Tomato: healthy\nTomato: blight", ("Tomato: healthy", "Tomato: blight")),
        ("001.Black_footed_Albatross\n002.Laysan_Albatross", ("001.Black_footed_Albatross", "002.Laysan_Albatross")),
    ],
)
def test_lines_that_only_resemble_another_format_are_labels(tmp_path, text, labels):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    assert read_labels(path) == labels


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        (
            "manifest.json",
            '{"kind": "x", "weights": "net.tflite", "names": "names.txt"}',
            "'names.txt' may be the label file",
        ),
        (
            "app.json",
            '{"modelFile": "m.tflite",\n"labelsFile": "dict.txt",\n"modelType": "L"}',
            "'dict.txt' may be the label file",
        ),
        ("app.yaml", "kind: x\nweights: net.tflite\nlabels_file: dict.txt", "indices|none of the keys|dict.txt"),
        ("settings.txt", "kind: x\nweights: net.tflite\nlabels: dict.txt", "settings such as"),
        ("cut.json", '{"0": "daisy",\n"1": "dande', "not valid JSON"),
        ("gap.json", '{"0": "a", "1": "b", "3": "c"}', "2 is missing"),
        ("gap.txt", "0: a\n1: b\n3: c", "2 is missing"),
        ("two.json", '{"a": 0, "b": 0}', "index 0 is used for two labels"),
        ("repeated.json", '{"a": 0, "a": 1}', "'a' occurs twice"),
        ("from_five.csv", "index,label\n5,a\n6,b", "do not start at 0 or 1|not consecutive"),
        ("differ.json", '{"labels": ["a", "b"], "classes": ["b", "a"]}', "several different lists"),
        ("swapped.txt", "0,2\n1,0\n2,1", "each line has two numbers"),
        ("deep.json", "[" * 100_000, "nested|not valid"),
        ("anchors.yaml", "names:\n  - &a daisy\n  - *a", "YAML syntax is not supported"),
        ("open.pbtxt", 'item { id: 1 name: "a"', "no closing brace"),
        ("labels.xml", "<labels><label>a</label></labels>", "XML"),
        ("page.txt", "<!DOCTYPE html>\n<html></html>", "web page"),
        ("pointer.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS pointer"),
        ("script.py", "import os\nlabels = ['a']", "not a label format"),
        ("control.json", '["a", "b\\u0007"]', "control character"),
        ("surrogate.json", '["a", "\\ud800"]', "an unpaired surrogate"),
        ("empty.txt", "\n\n", "no labels"),
        ("long.txt", "a\n" + "b" * 5000, "a line has 5,000 characters"),
    ],
)
def test_other_files_are_refused_with_the_reason(tmp_path, name, text, reason):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=reason) as raised:
        read_labels(path)
    assert name in str(raised.value)


def test_text_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("pâquerette\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"is not UTF-8 text: .* save it as UTF-8"):
        read_labels(path)


def test_size_of_a_label_file_is_limited(tmp_path):
    path = tmp_path / "labels.txt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(DataError, match="exceeds the limit of 4 MiB"):
        read_labels(path)
    with pytest.raises(DataError, match="is not a file"):
        read_labels(tmp_path)


def test_number_of_outputs_selects_the_format_and_is_checked(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("daisy,dandelion,roses\n")
    assert read_labels(path, 3) == FLOWERS[:3]
    path.write_text("#\n0\n#1\n")  # labels of a model for character recognition
    assert read_labels(path, 3) == ("#", "0", "#1")
    path.write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"has 3 labels, but m\.tflite needs 4"):
        read_labels(path, 4, "m.tflite")


# Files that are damaged or that take a parser very long. A parser with quadratic run time needs hours for these sizes.

_LINE_COUNT = 100_000

HOSTILE = {
    "repeated_key.json": json.dumps({f"k{n}": n for n in range(_LINE_COUNT)})[:-1] + ', "k9": 5}',
    "repeated_key.yaml": "".join(f"k{n}: a\n" for n in range(_LINE_COUNT)) + "k9: x\n",
    "empty_containers.yaml": "names:\n" * 100_000,
    "keys_of_spaces.yaml": f"a{' ' * 990}b: x\n" * 4000,
    "arrays.txt": "categories" * 400_000,
    "blank_start_of_arrays.txt": ("categories[" + " " * 100) * 35_000,
    "spaces.txt": f"a{' ' * 990}b\n" * 4000,
    "tabs.txt": "a" + "\t" * 990 + "b\n" + ("a" + "\t" * 990 + "b\n") * 4000,
    "comments.html": "<!---->" * 500 + "x" * 2000,
    "long_line.txt": "a" * 200_000,
    "two_long_fields.txt": "a" * 200_000 + ";b",
    "superscript.csv": "index,name\n²,a\n1,b\n",
    "superscript_first.csv": "²,a\n1,b\n",
    "superscript.pbtxt": "item { id: ² name: 'a' }",
    "long_number.pbtxt": f"item {{ id: {'9' * 5000} name: 'a' }}",
    "blank.csv": " \n\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_bounded_time(tmp_path, name):
    (tmp_path / name).write_text(HOSTILE[name], encoding="utf-8")
    with pytest.raises(DataError, match=r"^.*$"):
        read_labels(tmp_path / name)


def test_many_blank_lines_are_skipped(tmp_path):
    (tmp_path / "labels.txt").write_text("a" + "\n" * 500_000 + "b")
    assert read_labels(tmp_path / "labels.txt") == ("a", "b")
