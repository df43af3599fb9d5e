"""The table of benchmarks/mutations.py matches the code and the tests."""

from __future__ import annotations

import importlib

from tests.conftest import REPOSITORY


def test_code_and_tests_of_all_mutations_exist(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    mutations = importlib.import_module("mutations")
    assert len(mutations.MUTATIONS) > 80
    mutations.check_table(mutations.MUTATIONS)
