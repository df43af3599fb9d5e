"""The table of benchmarks/mutations.py matches the code and the tests."""

from __future__ import annotations

import importlib

import pytest

from tests.conftest import REPOSITORY


def test_texts_and_tests_of_all_mutations_exist(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    mutations = importlib.import_module("mutations").MUTATIONS
    assert len(mutations) > 80
    for mutation in mutations:
        content = (REPOSITORY / "edgerec" / mutation.file).read_text(encoding="utf-8")
        if content.count(mutation.old) != 1:
            pytest.fail(f"{mutation.function}: {mutation.file} must contain {mutation.old!r} once")
        path, _, name = mutation.test.partition("::")
        tests = (REPOSITORY / "tests" / path).read_text(encoding="utf-8")
        assert f"def {name.partition('[')[0]}(" in tests, f"no test {mutation.test}"
