"""The table of benchmarks/mutations.py matches the code and the tests."""

from __future__ import annotations

import importlib

import pytest

from tests.conftest import REPOSITORY

TESTS = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")}


def test_texts_and_tests_of_all_mutations_exist(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    mutations = importlib.import_module("mutations").MUTATIONS
    assert len(mutations) > 80
    for mutation in mutations:
        content = (REPOSITORY / "edgerec" / mutation.file).read_text(encoding="utf-8")
        if content.count(mutation.old) != 1:
            pytest.fail(f"{mutation.function}: {mutation.file} must contain {mutation.old!r} once")
        path, _, name = mutation.test.partition("::")
        assert f"def {name.partition('[')[0]}(" in TESTS[path.rpartition("/")[2]], f"no test {mutation.test}"
