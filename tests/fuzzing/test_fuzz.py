"""A small, reproducible part of ``benchmarks/fuzz.py``: edgerec accepts damaged input or refuses it in one line."""

from __future__ import annotations

import sys

import pytest

from tests.conftest import REPOSITORY

KINDS = ["manifests", "golden", "images", "archives", "models", "texts", "options", "settings", "serve", "devices"]
SEED, COUNT = 7, 300


@pytest.fixture(scope="module")
def fuzz():
    """Return the module ``benchmarks/fuzz.py``."""
    sys.path.insert(0, str(REPOSITORY / "benchmarks"))
    try:
        import fuzz

        yield fuzz
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", KINDS)
def test_damaged_input_is_accepted_or_refused_in_one_line(fuzz, bundle, tmp_path, name):
    kind, share = fuzz.KINDS[name]
    figures = fuzz.tally(name, kind, bundle, tmp_path, seed=SEED, count=COUNT * share // 100)
    assert figures.examples == []
    assert figures.other == 0
    assert figures.tried == figures.accepted + figures.refused > 0


def test_table_contains_every_kind_of_input(fuzz):
    assert list(fuzz.KINDS) == KINDS


def test_tally_counts_crashes_tracebacks_and_long_messages(fuzz, tmp_path):
    import contextlib
    import threading

    from fuzzing.tally import tally

    from edgerec.errors import EdgerecError

    class TwoLines(EdgerecError):
        def __str__(self) -> str:
            return "one\ntwo"

    def bug():
        raise KeyError("x")

    def in_a_thread():
        thread = threading.Thread(target=bug)
        thread.start()
        thread.join()

    def two_lines():
        raise TwoLines

    def one_line():
        raise EdgerecError("no")

    outcomes = [bug, in_a_thread, two_lines, one_line, lambda: None]

    @contextlib.contextmanager
    def kind(bundle, work):
        yield lambda rng: outcomes.pop(0)()

    figures = tally("outcomes", kind, tmp_path, tmp_path, seed=0, count=5)
    assert (figures.tried, figures.accepted, figures.refused, figures.other) == (5, 1, 1, 3)


def test_crash_and_hang_of_the_child_process_are_detected(fuzz, bundle, monkeypatch):
    from fuzzing import bundles

    monkeypatch.setattr(bundles, "_CHILD", "import os; print('ready', flush=True); input(); os.abort()")
    with bundles.Child() as child, pytest.raises(bundles.Broken, match="crashes with SIGABRT"):
        child.open(bundle)
    monkeypatch.setattr(bundles, "_CHILD", "print('ready', flush=True); input(); input()")
    monkeypatch.setattr(bundles, "LIMIT_S", 0.5)
    with bundles.Child() as child, pytest.raises(bundles.Broken, match="hangs"):
        child.open(bundle)
